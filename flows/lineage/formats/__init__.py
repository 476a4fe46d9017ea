"""The run records in formats that other tools read: RO-Crate, OpenLineage, in-toto/SLSA."""
