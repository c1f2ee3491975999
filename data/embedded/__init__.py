"""The sample that comes with the package: data only, described in its README."""
