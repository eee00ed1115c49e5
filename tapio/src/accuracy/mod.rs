//! How often the verdict is right: recorded cases with known answers through the real pipeline, scored.
//!
//! ```text
//! labels + recordings        cases.rs, label.rs
//!     │  what is in it       survey.rs: names, minutes covered
//!     │  changed             edit.rs, perturb.rs, rename.rs: without a signal, lost, slower, with other names
//! the pipeline               run.rs: the very replay of `tapio replay`, one case per thread
//!     │  finding revisions   revision.rs
//! scored                     matching.rs, score.rs
//!     │  summed              totals.rs
//! told                       report.rs, markdown.rs
//! ```
//!
//! `suite.rs` runs it all several times to compare, `fit.rs` makes the calibration of what was stated.

pub mod cases;
mod edit;
pub mod fit;
pub mod label;
pub mod markdown;
mod matching;
pub mod perturb;
mod rename;
pub mod report;
mod revision;
pub mod run;
mod score;
pub mod suite;
mod survey;
mod totals;
