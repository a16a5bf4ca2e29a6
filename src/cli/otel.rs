//! Export of traces over OTLP. Nothing of it is there until the environment says where traces go; the variables are
//! OpenTelemetry's own.

use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Runtime;

use crate::trace;

/// Traces that are exported; what waits goes out when this is dropped.
pub(super) struct Export {
    provider: SdkTracerProvider,
    /// What a connection of gRPC lives in. One of its own: the last spans go out when that of the program has stopped.
    runtime: Option<Runtime>,
}

/// What is spoken to the collector.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spoken {
    Http,
    Grpc,
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last spans were not exported: {error}");
        }
        if let Some(runtime) = self.runtime.take() {
            // A name that cannot be resolved must not keep the process.
            runtime.shutdown_background();
        }
    }
}

/// Exports traces if the environment says so. `node` is what this process calls itself.
///
/// # Errors
/// One line: a variable asks for what is not there.
pub(super) fn start(service: &str, node: &str) -> Result<Option<Export>, String> {
    let Some(spoken) = wanted(|name| std::env::var(name).ok())? else {
        return Ok(None);
    };
    // The exporter's client speaks TLS through whatever the process has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wrong = |error: ExporterBuildError| format!("traces cannot be exported: {error}");
    let (exporter, runtime) = match spoken {
        Spoken::Http => {
            let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
            (exporter.build().map_err(wrong)?, None)
        }
        Spoken::Grpc => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .map_err(|error| format!("cannot start a thread for traces: {error}"))?;
            let _guard = runtime.enter();
            let mut exporter = SpanExporter::builder().with_tonic();
            if endpoint(|name| std::env::var(name).ok()).is_some_and(|endpoint| !endpoint.starts_with("http://")) {
                exporter = exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
            }
            (exporter.build().map_err(wrong)?, Some(runtime))
        }
    };
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_owned()),
    ]);
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(service.to_owned());
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource.build())
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    trace::turn_on();
    Ok(Some(Export { provider, runtime }))
}

/// Where traces go, where that is said.
fn endpoint(get: impl Fn(&str) -> Option<String>) -> Option<String> {
    let get = |name: &str| get(name).filter(|value| !value.is_empty());
    get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| get("OTEL_EXPORTER_OTLP_ENDPOINT"))
}

/// What is to be spoken to whom the environment names; `None` when it wants no export.
fn wanted(get: impl Fn(&str) -> Option<String>) -> Result<Option<Spoken>, String> {
    let get = |name: &str| get(name).filter(|value| !value.is_empty());
    let named = endpoint(get);
    if get("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    match get("OTEL_TRACES_EXPORTER").as_deref() {
        None if named.is_none() => return Ok(None),
        Some("none") => return Ok(None),
        None | Some("otlp") => {}
        Some(other) => {
            return Err(format!(
                "OTEL_TRACES_EXPORTER: there is no exporter {other:?}; use otlp or none"
            ));
        }
    }
    let protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.as_deref() {
        None | Some("http/protobuf") => Ok(Some(Spoken::Http)),
        Some("grpc") => Ok(Some(Spoken::Grpc)),
        Some(other) => Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL: {other:?} is not spoken here; use http/protobuf (mostly at port 4318) or grpc \
             (mostly at port 4317)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{Spoken, wanted as wanted_by};

    #[test]
    fn traces_are_exported_where_the_environment_says_so() {
        let wanted = |variables: &[(&str, &str)]| {
            wanted_by(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(wanted(&[]), Ok(None));
        assert_eq!(wanted(&[endpoint]), Ok(Some(Spoken::Http)));
        assert_eq!(wanted(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(Some(Spoken::Http)));
        assert_eq!(wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(wanted(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(wanted(&[endpoint, grpc]), Ok(Some(Spoken::Grpc)));
        assert_eq!(wanted(&[grpc]), Ok(None));
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert_eq!(wanted(&[endpoint, grpc, traces]), Ok(Some(Spoken::Http)));
        assert!(wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).is_err());
        assert!(wanted(&[("OTEL_TRACES_EXPORTER", "jaeger")]).is_err());
    }
}
