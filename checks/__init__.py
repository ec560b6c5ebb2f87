"""Conformance checks: probes of any trainer, and what they show that it was allowed to see (`dassl-clip check`)."""
