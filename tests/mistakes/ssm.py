"""Wrong implementations, name -> (operation, function), that the conformance cases must fail; see test_mutants."""

MUTANTS = {}
