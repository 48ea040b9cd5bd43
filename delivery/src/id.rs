//! Document ids: readable, and never the same for two different keys.

/// Engines refuse ids over 512 bytes, and with them the whole bulk request.
pub const MAX_ID_BYTES: usize = 512;

/// The id of the document whose key columns have these values (as text; `None` is NULL). Never empty, at most
/// [`MAX_ID_BYTES`] long, different for any two different keys of the same number of columns.
///
/// One column: the text itself, so that `h.id = p.sku` holds for what `%` does not occur in. Several: joined by `:`.
pub fn document_id(values: &[Option<&str>]) -> String {
    let _ = values;
    todo!()
}

/// The values that [`document_id`] made `id` from; `None` if it can't have been made from `columns` values, or is a hash.
pub fn parse_document_id(id: &str, columns: usize) -> Option<Vec<Option<String>>> {
    let _ = (id, columns);
    todo!()
}
