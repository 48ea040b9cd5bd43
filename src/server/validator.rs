//! The validators that CREATE and ALTER SERVER, USER MAPPING and the like call with the full set of options.

use crate::error::failure;
use crate::server::ServerKind;
use crate::server::options::{self, Place};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Checks the options of an object of wrapper `fanout_elasticsearch`.
#[pg_extern(schema = "fanout")]
fn elasticsearch_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
    validate(ServerKind::Engine, options, catalog);
}

/// Checks the options of an object of wrapper `fanout_redis`.
#[pg_extern(schema = "fanout")]
fn redis_validator(options: Vec<Option<String>>, catalog: pg_sys::Oid) {
    validate(ServerKind::Redis, options, catalog);
}

fn validate(kind: ServerKind, items: Vec<Option<String>>, catalog: pg_sys::Oid) {
    let options = options::parse(items.into_iter().flatten());
    let place = match catalog {
        pg_sys::ForeignServerRelationId => Place::Server,
        pg_sys::UserMappingRelationId => Place::UserMapping,
        _ => {
            if let Some(name) = options.keys().next() {
                failure(PgSqlErrorCode::ERRCODE_FDW_INVALID_OPTION_NAME, format!("invalid option \"{name}\""))
                    .hint("Options belong in the server and in the user mapping.")
                    .raise();
            }
            return;
        }
    };
    if let Err(refusal) = options::check(kind, place, &options) {
        refusal.raise();
    }
}

extension_sql!(
    r#"
CREATE FOREIGN DATA WRAPPER fanout_elasticsearch NO HANDLER VALIDATOR fanout.elasticsearch_validator;
COMMENT ON FOREIGN DATA WRAPPER fanout_elasticsearch IS
    'pg_fanout: servers of this wrapper are Elasticsearch or OpenSearch clusters';
CREATE FOREIGN DATA WRAPPER fanout_redis NO HANDLER VALIDATOR fanout.redis_validator;
COMMENT ON FOREIGN DATA WRAPPER fanout_redis IS 'pg_fanout: servers of this wrapper are Redis servers, or Redis Clusters (option cluster)';
"#,
    name = "wrappers",
    requires = ["bootstrap", elasticsearch_validator, redis_validator]
);
