//! The operator's YAML: types, validation with line and column, CEL expressions.
