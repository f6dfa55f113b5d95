# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""The local file system as those see it who make files: new names appear whole and durable, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from vmdkit.errors import UsageError
from vmdkit.storage.file import FileDevice, open_file

if TYPE_CHECKING:
    from vmdkit.device import Device

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


class LocalFiles:
    """Names and files below the current directory and everywhere else; see ``vmdkit.vmdk.files.Files``."""

    def open_file(self, path: str, *, writable: bool = False, follow: bool = True, regular: bool = False) -> Device:
        """Open an existing file."""
        return open_file(path, writable=writable, follow=follow, regular=regular)

    def new_file(self, path: str, name: str) -> Device:
        """Make an empty file and open it for writing; FileExistsError where there is one, OSError names ``name``."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            error.filename = name
            raise
        try:
            return FileDevice(fd, name, writable=True)
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise

    def rename(self, old: str, new: str, *, replace: bool) -> None:
        """Give a file its final name in one step; without ``replace`` nothing of that name is harmed."""
        if replace:
            with suppress(FileNotFoundError):
                os.chmod(old, stat.S_IMODE(os.stat(new).st_mode))
            os.rename(old, new)
            return
        try:
            os.link(old, new)
        except FileExistsError as error:
            raise UsageError("it exists; -f overwrites it", path=new) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(new):  # no hard links here; a small gap is left
                raise UsageError("it exists; -f overwrites it", path=new) from error
            os.rename(old, new)
            return
        os.unlink(old)

    def remove(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        """Make names durable; file systems that cannot are forgiven."""
        with suppress(OSError):
            fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def exists(self, path: str) -> bool:
        """Tell whether there is a file of that name; UsageError where something else is."""
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(mode):
            raise UsageError("there is something of that name, and it is no regular file", path=path)
        return True

    def real_path(self, path: str) -> str:
        """Return the absolute path without symbolic links."""
        return os.path.realpath(path)

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, in no order."""
        return os.listdir(directory or ".")
