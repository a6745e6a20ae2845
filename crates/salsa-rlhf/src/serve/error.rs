//! Errors of requests, in OpenAI's form.
use hyper::StatusCode;
use serde_json::{Value, json};

/// An error reply to a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The error type, in OpenAI's terms.
    pub kind: &'static str,
    /// The cause and a remedy.
    pub message: String,
    /// The invalid parameter, such as `messages[2].content`.
    pub param: Option<String>,
    /// OpenAI's error code, if there is one.
    pub code: Option<&'static str>,
    /// Seconds after which the same request may succeed.
    pub retry_after: Option<u64>,
}

/// The error type of an invalid request.
const INVALID: &str = "invalid_request_error";

impl ApiError {
    /// The request is invalid as a whole.
    pub(crate) fn malformed(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, kind: INVALID, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A parameter is invalid.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::malformed(StatusCode::BAD_REQUEST, message) }
    }

    /// A parameter is unknown or not supported.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::invalid(param, message) }
    }

    /// A prompt is too long for the model.
    pub(crate) fn too_long(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) }
    }

    /// The model is not served.
    pub(crate) fn no_model(message: impl Into<String>) -> ApiError {
        let error = ApiError::malformed(StatusCode::NOT_FOUND, message);
        ApiError { param: Some("model".to_owned()), code: Some("model_not_found"), ..error }
    }

    /// The API key is missing or wrong.
    pub(crate) fn unauthorized() -> ApiError {
        let message = "the API key is missing or wrong; send it as Authorization: Bearer KEY";
        let error = ApiError::malformed(StatusCode::UNAUTHORIZED, message);
        ApiError { kind: "authentication_error", code: Some("invalid_api_key"), ..error }
    }

    /// Too many requests are waiting.
    pub(crate) fn busy(message: impl Into<String>) -> ApiError {
        let error = ApiError::malformed(StatusCode::TOO_MANY_REQUESTS, message);
        ApiError { kind: "rate_limit_error", code: Some("rate_limit_exceeded"), retry_after: Some(1), ..error }
    }

    /// The server is shutting down.
    pub(crate) fn stopping() -> ApiError {
        let error = ApiError::malformed(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
        ApiError { kind: "server_error", retry_after: Some(5), ..error }
    }

    /// An internal error.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        let error = ApiError::malformed(StatusCode::INTERNAL_SERVER_ERROR, message);
        ApiError { kind: "server_error", ..error }
    }

    /// `{"error": {"message": …, "type": …, "param": …, "code": …}}`
    pub(crate) fn body(&self) -> Value {
        let ApiError { kind, message, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}
