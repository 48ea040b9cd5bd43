//! Key templates: `shop:{${tenant}}:product:${id}` and a row's address columns make a Redis key, and back.

use crate::escape;

/// Why a template is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// No placeholder: every row would have the same key.
    #[error("the key template has no ${{column}}: every row would get the same key")]
    NoPlaceholder,
    /// Nothing but a placeholder: our keys could not be told from any other.
    #[error(
        "the key template needs some text beside its placeholder, such as product:${{id}}: otherwise nothing tells its keys from others"
    )]
    NoText,
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
pub struct KeyTemplate {
    columns: Vec<String>,
    /// Text, column number, text, column number, … text: `literals` has one more than `places`.
    literals: Vec<String>,
    places: Vec<usize>,
}

impl KeyTemplate {
    /// Parses a template. `${column}` is a placeholder; every other character, bare braces too (a hash tag of Redis
    /// Cluster), stands for itself.
    pub fn parse(template: &str) -> Result<KeyTemplate, TemplateError> {
        let parsed = Self::parse_any(template)?;
        if parsed.literals.iter().all(String::is_empty) {
            return Err(TemplateError::NoText);
        }
        Ok(parsed)
    }

    /// As [`KeyTemplate::parse`] for what need not be told from anything else: a placeholder alone will do.
    pub fn parse_any(template: &str) -> Result<KeyTemplate, TemplateError> {
        let mut columns: Vec<String> = Vec::new();
        let mut literals = Vec::new();
        let mut places = Vec::new();
        let mut rest = template;
        while let Some(start) = rest.find("${") {
            let at = template.len() - rest.len() + start;
            let name_on = &rest[start + 2..];
            let end = name_on.find('}').ok_or(TemplateError::Unterminated(at))?;
            let name = &name_on[..end];
            if name.is_empty() {
                return Err(TemplateError::EmptyPlaceholder(at));
            }
            let literal = &rest[..start];
            let column = columns.iter().position(|column| column == name).unwrap_or_else(|| {
                columns.push(name.to_owned());
                columns.len() - 1
            });
            // A value never shows such a character, so it marks where the value before it ended.
            if let Some(&before) = places.last()
                && !literal.contains(escape::separates)
            {
                let before: &String = &columns[before];
                return Err(TemplateError::Ambiguous(before.clone(), name.to_owned()));
            }
            literals.push(literal.to_owned());
            places.push(column);
            rest = &name_on[end + 1..];
        }
        if places.is_empty() {
            return Err(TemplateError::NoPlaceholder);
        }
        literals.push(rest.to_owned());
        Ok(KeyTemplate { columns, literals, places })
    }

    /// The columns in order of appearance; a column that appears twice is listed once.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The key for these values; `values` are in the order of [`KeyTemplate::columns`], `None` is NULL.
    /// Values that are missing at the end count as NULL.
    ///
    /// ```
    /// use delivery::template::KeyTemplate;
    /// let template = KeyTemplate::parse("shop:{${tenant}}:product:${id}").unwrap();
    /// assert_eq!(template.render(&[Some("a:b"), Some("7")]), "shop:{a%3Ab}:product:7");
    /// ```
    pub fn render(&self, values: &[Option<&str>]) -> String {
        let mut key = String::with_capacity(64);
        for (literal, place) in self.literals.iter().zip(&self.places) {
            key.push_str(literal);
            escape::push(&mut key, values.get(*place).copied().flatten());
        }
        key.push_str(self.suffix());
        key
    }

    /// A pattern for `SCAN … MATCH` which every key of this template matches (others may too: check with
    /// [`KeyTemplate::parse_key`]).
    pub fn glob(&self) -> String {
        let mut glob = String::with_capacity(64);
        for (n, literal) in self.literals.iter().enumerate() {
            if n > 0 {
                glob.push('*');
            }
            for character in literal.chars() {
                if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                    glob.push('\\');
                }
                glob.push(character);
            }
        }
        glob
    }

    /// The values, in the order of [`KeyTemplate::columns`], that render to exactly `key`; `None` if there are none.
    pub fn parse_key(&self, key: &str) -> Option<Vec<Option<String>>> {
        let mut values: Vec<Option<Option<String>>> = vec![None; self.columns.len()];
        let mut rest = key.strip_prefix(self.literals.first()?.as_str())?.strip_suffix(self.suffix())?;
        for (n, &place) in self.places.iter().enumerate() {
            let text = if n + 1 == self.places.len() {
                rest
            } else {
                let literal = &self.literals[n + 1];
                // The first separating character after the value is the literal's first: its offset in the literal is known.
                let length = rest.find(escape::separates)?.checked_sub(literal.find(escape::separates)?)?;
                let (text, after) = rest.split_at_checked(length)?;
                rest = after.strip_prefix(literal.as_str())?;
                text
            };
            let value = escape::parse(text)?;
            match &values[place] {
                Some(seen) if *seen != value => return None,
                _ => values[place] = Some(value),
            }
        }
        values.into_iter().collect()
    }

    fn suffix(&self) -> &str {
        self.literals.last().map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(template: &str) -> KeyTemplate {
        KeyTemplate::parse(template).unwrap()
    }

    #[test]
    fn hash_tags_are_literal() {
        let template = parsed("shop:{${tenant}}:product:${id}");
        assert_eq!(template.columns(), ["tenant", "id"]);
        assert_eq!(template.glob(), "shop:{*}:product:*");
        let key = template.render(&[Some("a}b"), None]);
        assert_eq!(key, "shop:{a%7Db}:product:%N");
        assert_eq!(template.parse_key(&key), Some(vec![Some("a}b".into()), None]));
        assert_eq!(template.parse_key("shop:{a}:product:b:c"), None);
        assert_eq!(template.parse_key("shop:{a}:product:"), None);
        assert_eq!(template.parse_key("shop:{a}"), None);
    }

    #[test]
    fn what_is_refused() {
        use TemplateError::*;
        assert_eq!(KeyTemplate::parse("product:id"), Err(NoPlaceholder));
        assert_eq!(KeyTemplate::parse("${id}"), Err(NoText));
        assert_eq!(KeyTemplate::parse("p:${id"), Err(Unterminated(2)));
        assert_eq!(KeyTemplate::parse("p:${}"), Err(EmptyPlaceholder(2)));
        for template in ["p:${a}${b}", "p:${a}-${b}", "p:${a}%${b}"] {
            assert_eq!(KeyTemplate::parse(template), Err(Ambiguous("a".into(), "b".into())));
        }
        assert_eq!(
            KeyTemplate::parse("p:${a}-${b}").unwrap_err().to_string(),
            "between ${a} and ${b} the key template needs a separator such as \":\": otherwise two rows could get the same key"
        );
    }

    #[test]
    fn a_column_may_come_twice() {
        let template = parsed("{${id}}:x:${id}");
        assert_eq!(template.columns(), ["id"]);
        assert_eq!(template.parse_key("{7}:x:7"), Some(vec![Some("7".into())]));
        assert_eq!(template.parse_key("{7}:x:8"), None);
    }

    #[test]
    fn a_glob_takes_text_literally() {
        assert_eq!(parsed("a*[b]?\\:${id}").glob(), "a\\*\\[b\\]\\?\\\\:*");
    }

    fn values() -> impl Strategy<Value = Vec<Option<String>>> {
        let text = prop_oneof!["[%:ENxy25{}é\\\\ \\-]{0,4}", any::<String>()];
        proptest::collection::vec(proptest::option::weighted(0.9, text), 3)
    }

    fn template() -> impl Strategy<Value = KeyTemplate> {
        // Literals with letters and dashes around the separator, as values may have them too.
        ("[xy:%{}\\-é]{0,3}", "[xy\\-é]{0,2}[:{} ][xy:%\\-]{0,2}", "[xy%]{0,2}:", "[xy:%25N]{0,3}")
            .prop_filter_map("no text", |(a, b, c, d)| {
                KeyTemplate::parse(&format!("{a}${{p}}{b}${{q}}{c}${{r}}{d}")).ok()
            })
    }

    fn rendered(template: &KeyTemplate, values: &[Option<String>]) -> String {
        template.render(&values.iter().map(Option::as_deref).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn a_key_is_parsed_back(template in template(), values in values()) {
            prop_assert_eq!(template.parse_key(&rendered(&template, &values)), Some(values));
        }

        #[test]
        fn different_values_have_different_keys(template in template(), a in values(), b in values()) {
            prop_assert_eq!(a == b, rendered(&template, &a) == rendered(&template, &b));
        }

        #[test]
        fn what_is_parsed_was_written_so(template in template(), key in "[xy:%25EN{} \\-]{0,12}") {
            if let Some(values) = template.parse_key(&key) {
                prop_assert_eq!(rendered(&template, &values), key);
            }
        }

        #[test]
        fn any_text_is_a_template_or_an_error(text in "[$:{}a]{0,12}") {
            let _ = KeyTemplate::parse(&text);
        }
    }
}
