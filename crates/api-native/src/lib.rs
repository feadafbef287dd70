//! The native front end: REST, OpenAPI, server-sent events, XML-RPC.
