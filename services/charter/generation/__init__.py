"""PolicyService on an engine: on the policy's, and on that of the judge's model."""
