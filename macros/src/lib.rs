//! The macros of Regatta.
