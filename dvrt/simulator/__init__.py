"""Simulators in virtual time; ``compat_*`` follow the public ones bit by bit, without a runtime."""
