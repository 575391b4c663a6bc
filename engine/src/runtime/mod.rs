//! Runs a graph.
pub mod graph;
