//! Host and Origin: who may call a server that is bound to loopback. Refused with an empty 403.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

#[derive(Clone)]
pub struct Guard {
    /// The Host check is for servers on loopback only.
    loopback: bool,
    hostname: Arc<str>,
}

impl Guard {
    pub fn new(address: SocketAddr) -> Self {
        // Without its own name the machine is still `localhost`.
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            loopback: address.ip().is_loopback(),
            hostname: hostname.trim().to_lowercase().into(),
        }
    }

    fn allows(&self, headers: &HeaderMap) -> bool {
        let value = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("\0"));
        let host = !self.loopback || value(HOST).is_none_or(|host| self.is_local(without_port(host)));
        host && value(ORIGIN).is_none_or(is_allowed_origin)
    }

    fn is_local(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).to_lowercase();
        if let Ok(address) = host.parse::<IpAddr>() {
            return is_local_address(address);
        }
        host.is_empty()
            || host == "localhost"
            || host == *self.hostname
            || [".localhost", ".local", ".internal"]
                .iter()
                .any(|suffix| host.ends_with(suffix))
    }
}

/// Refuses a request before any handler sees it.
pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if guard.allows(request.headers()) {
        next.run(request).await
    } else {
        StatusCode::FORBIDDEN.into_response()
    }
}

fn is_local_address(address: IpAddr) -> bool {
    let private = match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    };
    private || address.is_loopback() || address.is_unspecified()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// The origins that are allowed when nothing is configured: pages of this machine, and applications.
fn is_allowed_origin(origin: &str) -> bool {
    match origin.split_once("://") {
        Some(("http" | "https", host)) => matches!(without_port(host), "localhost" | "127.0.0.1" | "0.0.0.0"),
        Some((scheme, _)) => matches!(scheme, "app" | "file" | "tauri" | "vscode-webview" | "vscode-file"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(header: HeaderName, value: &'static str) -> bool {
        let guard = Guard {
            loopback: true,
            hostname: "box".into(),
        };
        guard.allows(&HeaderMap::from_iter([(
            header,
            value.parse().expect("a header value"),
        )]))
    }

    #[test]
    fn a_loopback_server_answers_to_local_names_only() {
        for host in [
            "localhost:11434",
            "127.0.0.1",
            "[::1]:80",
            "BOX:1",
            "192.168.1.2",
            "host.docker.internal",
        ] {
            assert!(allows(HOST, host), "{host}");
        }
        for host in ["example.com", "example.com:80", "8.8.8.8", "localhost.example.com"] {
            assert!(!allows(HOST, host), "{host}");
        }
    }

    #[test]
    fn foreign_origins_are_refused() {
        assert!(allows(ORIGIN, "http://localhost:3000"));
        assert!(!allows(ORIGIN, "https://example.com"));
        assert!(!allows(ORIGIN, "null"));
    }
}
