//! Key templates: `shop:{${tenant}}:product:${id}` and a row's address columns make a Redis key, and back.

/// Why a template is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// No placeholder: every row would have the same key.
    #[error("the key template has no ${{column}}: every row would get the same key")]
    NoPlaceholder,
    /// `${` without `}`.
    #[error("the key template has \"${{\" without \"}}\" at byte {0}")]
    Unterminated(usize),
    /// `${}`.
    #[error("the key template has an empty placeholder \"${{}}\" at byte {0}")]
    EmptyPlaceholder(usize),
    /// Two keys could become the same text.
    #[error(
        "between ${{{0}}} and ${{{1}}} the key template needs a separator such as \":\": otherwise two rows could get the same key"
    )]
    Ambiguous(String, String),
}

/// A parsed key template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate {}

impl KeyTemplate {
    /// Parses a template. `${column}` is a placeholder; every other character, bare braces too, stands for itself.
    pub fn parse(template: &str) -> Result<KeyTemplate, TemplateError> {
        let _ = template;
        todo!()
    }

    /// The columns in order of appearance; a column that appears twice is listed once.
    pub fn columns(&self) -> &[String] {
        todo!()
    }

    /// The key for these values; `values` are in the order of [`KeyTemplate::columns`], `None` is NULL.
    /// Values that are missing at the end count as NULL.
    pub fn render(&self, values: &[Option<&str>]) -> String {
        let _ = values;
        todo!()
    }

    /// A pattern for `SCAN … MATCH` which every key of this template matches (others may too: check with
    /// [`KeyTemplate::parse_key`]).
    pub fn glob(&self) -> String {
        todo!()
    }

    /// The values, in the order of [`KeyTemplate::columns`], that render to exactly `key`; `None` if there are none.
    pub fn parse_key(&self, key: &str) -> Option<Vec<Option<String>>> {
        let _ = key;
        todo!()
    }
}
