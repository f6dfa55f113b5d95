# Every target is a verb of ./dev, which sets up what it needs.
VERBS := demo test check unit interop fuzz bench docs format clean
.PHONY: $(VERBS)
$(VERBS):
	@./dev $@
