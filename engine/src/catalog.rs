//! Names of a job.
