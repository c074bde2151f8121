"""Stand-ins at the SDK's own boundary, for hardware that is absent. Nothing of edgeqc is faked."""
