//! The hub's HTTP interface.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::id::is_commit;
use super::{Hub, Id, Kind};

/// Maximum number of redirections.
const MOST_REDIRECTIONS: usize = 8;

/// Maximum duration of a connection; a longer download continues with another.
const LONGEST_CONNECTION: Duration = Duration::from_secs(600);

/// Maximum bytes of a listing.
const LONGEST_LISTING: u64 = 256 << 20;

/// HTTP client for one hub.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

/// The content of a revision.
pub(super) struct Listing {
    pub commit: String,
    pub entries: Vec<Entry>,
}

/// A file of a repository.
pub(super) struct Entry {
    /// Its path in the repository, with `/`; does not lead outside.
    pub name: String,
    pub size: Option<u64>,
}

/// The digest and length of a file.
pub(super) struct Announced {
    pub etag: String,
    pub length: u64,
}

/// Why a listing failed.
pub(super) enum Failure {
    /// The hub could not be reached.
    Unreachable(String),
    /// The hub refused.
    Refused(anyhow::Error),
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Client<'a> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(LONGEST_CONNECTION))
            .user_agent(concat!("salsa-rlhf/", env!("CARGO_PKG_VERSION")))
            .build();
        Client { hub, agent: config.into() }
    }

    /// The files of a revision.
    pub(super) fn listing(&self, id: &Id, kind: Kind) -> Result<Listing, Failure> {
        let revision = id.revision().replace('/', "%2F");
        let url = format!("{}/api/{}/{}/revision/{revision}?blobs=true", self.hub.endpoint, kind.plural(), id.name());
        let unreachable = |error: anyhow::Error| Failure::Unreachable(format!("{error:#}"));
        let mut answer = self.ask(Method::Get, &url, None).map_err(unreachable)?;
        if answer.status().is_server_error() {
            return Err(Failure::Unreachable(format!("it answers {}", answer.status())));
        }
        self.check(&answer, id, kind).map_err(Failure::Refused)?;
        let text = answer.body_mut().with_config().limit(LONGEST_LISTING).read_to_string();
        let text = text.map_err(|e| unreachable(e.into()))?;
        read_listing(&text).map_err(|e| Failure::Refused(e.context(format!("{url} gives no listing that can be read"))))
    }

    /// Requests the digest and length of a file.
    pub(super) fn announced(&self, id: &Id, kind: Kind, commit: &str, name: &str) -> Result<Announced> {
        let url = self.address(id, kind, commit, name);
        let answer = self.ask(Method::Head, &url, None)?;
        let headers = answer.headers();
        if !answer.status().is_redirection() {
            self.check(&answer, id, kind)?;
        }
        // For a large file they are headers of the redirection; its target has other ETags.
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let length = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let good = |etag: &String| {
            !etag.is_empty() && etag.len() <= 128 && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let etag = etag.filter(good).ok_or_else(|| anyhow!("{url} is sent without an ETag that names its bytes"))?;
        let length = length.and_then(|length| length.parse().ok());
        Ok(Announced { etag, length: length.ok_or_else(|| anyhow!("{url} is sent without a length"))? })
    }

    /// Requests the bytes of a file from `start` on: status 206 returns those, 200 all of them.
    pub(super) fn bytes(&self, id: &Id, kind: Kind, commit: &str, name: &str, start: u64) -> Result<Response<Body>> {
        let url = self.address(id, kind, commit, name);
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let mut url = url;
        for _ in 0..MOST_REDIRECTIONS {
            let answer = self.ask(Method::Get, &url, range.as_deref())?;
            if !answer.status().is_redirection() {
                if answer.status() != StatusCode::RANGE_NOT_SATISFIABLE {
                    self.check(&answer, id, kind)?;
                }
                return Ok(answer);
            }
            url = target(&url, &answer)?;
        }
        bail!("{} is redirected again and again", self.address(id, kind, commit, name))
    }

    fn address(&self, id: &Id, kind: Kind, commit: &str, name: &str) -> String {
        let folder = if kind == Kind::Dataset { "datasets/" } else { "" };
        let name: Vec<String> = name.split('/').map(percent_encoded).collect();
        format!("{}/{folder}{}/resolve/{commit}/{}", self.hub.endpoint, id.name(), name.join("/"))
    }

    /// Sends a request. The token is sent to the endpoint's own host only. A redirection within a host is followed, as
    /// for a renamed repository; others are returned.
    fn ask(&self, method: Method, url: &str, range: Option<&str>) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..MOST_REDIRECTIONS {
            let mut request = match method {
                Method::Get => self.agent.get(&url),
                Method::Head => self.agent.head(&url),
            };
            // With compression in transit, the bytes would not match the ETag.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| same_origin(&url, &self.hub.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let answer = request.call().with_context(|| url.clone())?;
            let next = answer.status().is_redirection().then(|| target(&url, &answer)).transpose()?;
            match next {
                Some(next) if same_origin(&next, &url) => url = next,
                _ => return Ok(answer),
            }
        }
        bail!("{url} is redirected again and again")
    }

    /// Converts a refusal to an error.
    fn check(&self, answer: &Response<Body>, id: &Id, kind: Kind) -> Result<()> {
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let (noun, endpoint) = (kind.noun(), &self.hub.endpoint);
        let code = text(answer.headers(), "x-error-code").unwrap_or_default();
        let page = format!("{endpoint}/{}{}", if kind == Kind::Dataset { "datasets/" } else { "" }, id.name());
        let known = if self.hub.token.is_some() {
            "the token that was sent (HF_TOKEN) gives no access"
        } else {
            "no token was sent; set HF_TOKEN, or run: hf auth login"
        };
        match (status.as_u16(), code) {
            (_, "GatedRepo") => bail!("the {noun} {id} asks for consent to its terms: give it at {page}; {known}"),
            (_, "RevisionNotFound") => bail!("the {noun} {} has no revision {:?}", id.name(), id.revision()),
            (401 | 403, _) => {
                bail!("{endpoint} refuses the {noun} {id} ({status}): it does not exist, or is private; {known}")
            }
            (404, _) => bail!("{endpoint} has no {noun} {id} (404): check the spelling"),
            (429, _) => {
                bail!("{endpoint} asks to wait (429): try again in a few minutes; with HF_TOKEN the limits are higher")
            }
            _ => bail!("{endpoint} answers {status} for the {noun} {id}: try again later"),
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    Get,
    Head,
}

fn read_listing(text: &str) -> Result<Listing> {
    let value: Value = serde_json::from_str(text)?;
    let commit = value["sha"].as_str().filter(|sha| is_commit(sha)).ok_or_else(|| anyhow!("it names no commit"))?;
    let siblings = value["siblings"].as_array().ok_or_else(|| anyhow!("it lists no files"))?;
    let mut entries = Vec::with_capacity(siblings.len());
    for sibling in siblings {
        let name = sibling["rfilename"].as_str().ok_or_else(|| anyhow!("a file has no name"))?;
        let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains(['\\', ':', '\0']);
        if name.split('/').any(bad) {
            bail!("the file {name:?} is not inside the repository: do not trust it");
        }
        entries.push(Entry { name: name.to_owned(), size: sibling["size"].as_u64() });
    }
    Ok(Listing { commit: commit.to_owned(), entries })
}

/// The target of a redirection.
fn target(from: &str, answer: &Response<Body>) -> Result<String> {
    let place = text(answer.headers(), "location").ok_or_else(|| anyhow!("{from} is redirected to no place"))?;
    let place = if let Some(rest) = place.strip_prefix("//") {
        format!("{}://{rest}", scheme(from))
    } else if place.starts_with('/') {
        format!("{}{place}", origin(from).ok_or_else(|| anyhow!("{from} is no address"))?)
    } else {
        place.to_owned()
    };
    if !(place.starts_with("https://") || (place.starts_with("http://") && scheme(from) == "http")) {
        bail!("{from} is redirected to {place}, which is not encrypted");
    }
    Ok(place)
}

fn scheme(url: &str) -> &str {
    url.split_once("://").map_or("https", |(scheme, _)| scheme)
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    Some(format!("{}://{}", uri.scheme_str()?, authority.as_str().to_ascii_lowercase()))
}

fn same_origin(a: &str, b: &str) -> bool {
    origin(a).is_some_and(|a| origin(b) == Some(a))
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn percent_encoded(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(reason) => write!(f, "unreachable: {reason}"),
            Failure::Refused(error) => write!(f, "refused: {error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_leads_outside_is_refused() {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        let listing = |name: &str| read_listing(&format!(r#"{{"sha":"{sha}","siblings":[{{"rfilename":"{name}"}}]}}"#));
        assert_eq!(listing("data/train.jsonl").unwrap().entries[0].name, "data/train.jsonl");
        for name in ["../x", "/etc/passwd", "a/../../x", "a//b", "C:/x", "a\\\\b", ""] {
            let error = listing(name).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains("not inside the repository"), "{name}: {error}");
        }
        assert!(read_listing(r#"{"sha":"../x","siblings":[]}"#).is_err());
    }

    #[test]
    fn origins_are_compared_whole() {
        assert!(same_origin("https://huggingface.co/a", "https://HuggingFace.co/b?c"));
        for other in [
            "http://huggingface.co",
            "https://huggingface.co:444",
            "https://cdn.huggingface.co",
            "https://huggingface.co.evil",
        ] {
            assert!(!same_origin("https://huggingface.co/a", other), "{other}");
        }
    }
}
