"""The embedded Dassl toolbox."""

