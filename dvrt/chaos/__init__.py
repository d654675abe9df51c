"""Faults on purpose: schedules of them, traffic to disturb, and the verdict on every answer."""
