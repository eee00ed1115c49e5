//! One file per subcommand.

pub mod accuracy;
pub mod causes;
pub mod check;
pub mod demo;
pub mod doctor;
pub mod feedback;
pub mod fix;
pub mod leak_child;
pub mod loadtest;
pub mod loadtest_args;
pub mod patterns;
pub mod predictions;
pub mod record;
pub mod replay;
pub mod run;
pub mod status;
pub mod transfer;
pub mod watch;
pub mod why;
