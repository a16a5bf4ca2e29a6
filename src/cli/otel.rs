//! Export of traces over OTLP. Nothing of it is there until the environment says where traces go; the variables are
//! OpenTelemetry's own.

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::trace;

/// Traces that are exported; what waits goes out when this is dropped.
pub(super) struct Export(SdkTracerProvider);

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!("the last spans were not exported: {error}");
        }
    }
}

/// Exports traces if the environment says so. `node` is what this process calls itself.
///
/// # Errors
/// One line: a variable asks for what is not there.
pub(super) fn start(service: &str, node: &str) -> Result<Option<Export>, String> {
    if !is_wanted(|name| std::env::var(name).ok())? {
        return Ok(None);
    }
    // The exporter's client speaks TLS through whatever the process has chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .build()
        .map_err(|error| format!("traces cannot be exported: {error}"))?;
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
    Ok(Some(Export(provider)))
}

/// Whether the environment asks for an export that there is.
fn is_wanted(get: impl Fn(&str) -> Option<String>) -> Result<bool, String> {
    let get = |name: &str| get(name).filter(|value| !value.is_empty());
    if get("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let named = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| get("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let wanted = match get("OTEL_TRACES_EXPORTER").as_deref() {
        None => named.is_some(),
        Some("none") => false,
        Some("otlp") => true,
        Some(other) => {
            return Err(format!(
                "OTEL_TRACES_EXPORTER: there is no exporter {other:?}; use otlp or none"
            ));
        }
    };
    let protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.as_deref() {
        Some(other) if wanted && other != "http/protobuf" => Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL: {other:?} is not spoken here; use http/protobuf, mostly at port 4318"
        )),
        _ => Ok(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::is_wanted;

    #[test]
    fn traces_are_exported_where_the_environment_says_so() {
        let wanted = |variables: &[(&str, &str)]| {
            is_wanted(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        assert_eq!(wanted(&[]), Ok(false));
        assert_eq!(wanted(&[endpoint]), Ok(true));
        assert_eq!(wanted(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(true));
        assert_eq!(wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(wanted(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(false));
        assert!(wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).is_err());
        assert!(wanted(&[("OTEL_TRACES_EXPORTER", "jaeger")]).is_err());
    }
}
