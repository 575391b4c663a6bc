//! Connector.
use super::ConnectorSpec;
/// See [super::registry].
pub const SPEC: ConnectorSpec =
    ConnectorSpec { name: "print", doc: "", options: &[], takes_format: false, source: None, sink: None, metadata: &[] };
