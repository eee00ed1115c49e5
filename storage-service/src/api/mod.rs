//! The ways to ask: gRPC, and request/reply over NATS. Both read a request into the same question and
//! get the same answer.

pub mod answers;
mod error;
pub mod feedback;
pub mod grpc;
pub mod nats;
mod question;
mod subscribe;

pub use error::ApiError;
pub use question::ListQuestion;
