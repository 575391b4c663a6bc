//! Aggregates that can take rows back.
