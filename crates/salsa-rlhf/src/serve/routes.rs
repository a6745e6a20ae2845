//! Routing of paths.
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{
    app::{App, Reading, body_of},
    catalogue::Served,
    completion::{Form, not_json},
    error::ApiError,
    respond::{self, Body},
};

/// The handler of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Metrics,
    Models,
    Completion(Form),
    Reading(Reading),
}

/// The paths, which are also their names in metrics. `/get_reward` is the path of OpenRLHF's own server.
const ROUTES: [(&str, Route); 8] = [
    ("/health", Route::Health),
    ("/metrics", Route::Metrics),
    ("/v1/models", Route::Models),
    ("/v1/chat/completions", Route::Completion(Form::Chat)),
    ("/v1/completions", Route::Completion(Form::Text)),
    ("/score", Route::Reading(Reading::Scores)),
    ("/get_reward", Route::Reading(Reading::Scores)),
    ("/logprobs", Route::Reading(Reading::Logprobs)),
];

/// Handles a request.
pub(super) async fn answer(app: Arc<App>, request: Request<Incoming>) -> Response<Body> {
    let came = Instant::now();
    let path = request.uri().path();
    let one_model =
        path.strip_prefix("/v1/models/").map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned());
    let route = ROUTES.iter().find(|(known, _)| *known == path);
    let name = match (route, &one_model) {
        (Some((name, _)), _) => name,
        (None, Some(_)) => "/v1/models/{model}",
        (None, None) => "other",
    };
    let response = match (route, one_model) {
        (Some(&(_, route)), _) => routed(app.clone(), route, request, came).await,
        (None, Some(model)) => allowed(&app, &request).and_then(|()| one(&app, &model)),
        (None, None) => allowed(&app, &request).and_then(|()| Err(no_path(request.uri().path()))),
    };
    let response = response.unwrap_or_else(|error| respond::error(&error));
    app.metrics.answered(name, response.status().as_u16(), came.elapsed());
    response
}

async fn routed(
    app: Arc<App>,
    route: Route,
    request: Request<Incoming>,
    came: Instant,
) -> Result<Response<Body>, ApiError> {
    let method = match route {
        Route::Health | Route::Metrics | Route::Models => Method::GET,
        Route::Completion(_) | Route::Reading(_) => Method::POST,
    };
    if *request.method() != method {
        return Ok(respond::not_allowed(if method == Method::GET { "GET" } else { "POST" }));
    }
    if route != Route::Health {
        allowed(&app, &request)?;
    }
    if app.is_stopping.load(Ordering::Relaxed) {
        return Err(ApiError::stopping());
    }
    match route {
        Route::Health => Ok(respond::json(StatusCode::OK, &json!({"status": "ok"}))),
        Route::Metrics => {
            Ok(respond::text("text/plain; version=0.0.4; charset=utf-8", app.metrics.text(app.queue.waiting())))
        }
        Route::Models => Ok(respond::json(StatusCode::OK, &all(&app))),
        Route::Completion(form) => {
            let body = json_body(&app, request).await?;
            app.complete(form, body, came).await
        }
        Route::Reading(reading) => {
            let body = json_body(&app, request).await?;
            app.read(reading, body).await
        }
    }
}

/// Reads a body with a JSON content type. A web page cannot send one to another origin without a CORS preflight, which
/// this server does not answer.
async fn json_body(app: &App, request: Request<Incoming>) -> Result<Vec<u8>, ApiError> {
    if !is_json(request.headers()) {
        return Err(not_json());
    }
    body_of(request.into_body(), &app.limits).await
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

fn allowed(app: &App, request: &Request<Incoming>) -> Result<(), ApiError> {
    if app.keys.allow(request.headers()) { Ok(()) } else { Err(ApiError::unauthorized()) }
}

fn no_path(path: &str) -> ApiError {
    let known: Vec<&str> = ROUTES.iter().map(|(path, _)| *path).collect();
    ApiError::malformed(StatusCode::NOT_FOUND, format!("there is no path {path:?}; there are {}", known.join(", ")))
}

fn all(app: &App) -> Value {
    let models: Vec<Value> = app.catalogue.models.iter().map(|served| told(app, served)).collect();
    json!({"object": "list", "data": models})
}

fn one(app: &App, name: &str) -> Result<Response<Body>, ApiError> {
    let known = app.catalogue.models.iter().find(|served| served.name == name);
    let served = known.ok_or_else(|| ApiError::no_model(format!("there is no model {name:?}")))?;
    Ok(respond::json(StatusCode::OK, &told(app, served)))
}

/// A model in OpenAI's list format, with vLLM's additions.
fn told(app: &App, served: &Served) -> Value {
    let base = served.checkpoint.adapter().map(|_| served.checkpoint.base_dir());
    json!({
        "id": served.name,
        "object": "model",
        "created": app.began,
        "owned_by": "salsa",
        "root": served.dir,
        "parent": base,
        "max_model_len": served.context,
        "kind": if served.is_language_model() { "language_model" } else { "reward_model" },
    })
}
