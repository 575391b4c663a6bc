//! The controller of StreamingJobs.
