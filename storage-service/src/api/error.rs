//! Why a question got no answer.

use tonic::{Code, Status};

use crate::store::StoreError;

/// An error for the one who asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The question cannot be understood.
    #[error("{field}: {message}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// There is no such finding.
    #[error("{0}")]
    NotFound(String),
    /// Too many are asking.
    #[error("{0}")]
    Busy(String),
    /// The store cannot be read now; try again.
    #[error("the store cannot be read now: {0}")]
    Unavailable(String),
    /// The record is damaged.
    #[error("{0}")]
    Damaged(String),
}

impl ApiError {
    pub(super) fn invalid(field: &'static str, message: impl ToString) -> Self {
        Self::Invalid { field, message: message.to_string() }
    }

    /// As in HTTP, for answers over NATS.
    pub fn http_code(&self) -> usize {
        match self {
            Self::Invalid { .. } => 400,
            Self::NotFound(_) => 404,
            Self::Busy(_) => 429,
            Self::Unavailable(_) => 503,
            Self::Damaged(_) => 500,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { .. } | StoreError::CorruptKey(_) => Self::Damaged(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match error {
            ApiError::Invalid { .. } => Code::InvalidArgument,
            ApiError::NotFound(_) => Code::NotFound,
            ApiError::Busy(_) => Code::ResourceExhausted,
            ApiError::Unavailable(_) => Code::Unavailable,
            ApiError::Damaged(_) => Code::DataLoss,
        };
        Status::new(code, error.to_string())
    }
}
