//! From the arguments of a search to the body of the request. Knows nothing of Postgres: it also runs on the request thread.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use serde_json::value::RawValue;

use super::cursor;
use super::visitor;

/// The largest page: `index.max_result_window` of an index that nobody has changed it for.
pub const MAX_SIZE: i32 = 10_000;

/// What the caller of a search function gave; JSON as text.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub query: Option<String>,
    pub dsl: Option<String>,
    pub filter: Option<String>,
    pub fields: Option<Vec<Option<String>>>,
    pub size: i32,
    pub after: Option<String>,
    pub sort: Option<String>,
    pub highlight: Option<Vec<Option<String>>>,
    pub source: bool,
    /// Fields of the document that are wanted instead of what `source` says; none: as `source` says.
    pub source_fields: Vec<String>,
    pub min_score: Option<f64>,
    pub options: Option<String>,
}

/// What is known of the index.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The fields that `query` searches unless told otherwise; none: the engine's default.
    pub search_fields: Vec<String>,
    /// Fields that together are different for every document, with their mapped type.
    pub unique: Vec<(String, String)>,
    /// The caller may read this index only: queries that look into another are refused.
    pub confined: bool,
}

/// Why arguments are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Refusal {
    fn new(message: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), detail: None, hint: None }
    }

    fn detail(mut self, detail: impl Into<String>) -> Refusal {
        self.detail = Some(detail.into());
        self
    }

    fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = Some(hint.into());
        self
    }
}

/// A search that can be sent.
#[derive(Clone, Debug)]
pub struct Search {
    text: Option<VisitorText>,
    dsl: Option<String>,
    filter: Vec<String>,
    /// Everything else of the body, each member followed by a comma.
    members: String,
    /// The sort order as JSON; empty: by score, and pages can't be followed.
    pub order: String,
}

#[derive(Clone, Debug)]
struct VisitorText {
    text: String,
    max_words: usize,
    /// Members after `query`, each with a comma before it.
    settings: String,
}

/// The options that [`compose`] knows.
const OPTIONS: [&str; 7] =
    ["default_operator", "highlight", "minimum_should_match", "source", "timeout", "track_scores", "track_total_hits"];

/// Checks the arguments and makes a search of them.
pub fn compose(arguments: &Arguments, scope: &Scope) -> Result<Search, Refusal> {
    let mut search = matching(arguments, scope)?;
    let options = options(arguments.options.as_deref())?;
    let size = arguments.size;
    if !(1..=MAX_SIZE).contains(&size) {
        return Err(Refusal::new(format!("argument \"size\" is {size}, which is not between 1 and {MAX_SIZE}")).hint(
            "For more rows pass the \"cursor\" of the last one as \"after\" of the next call; es_count() counts.",
        ));
    }
    let mut members = format!("\"size\":{size},");

    search.order = order(arguments.sort.as_deref(), &scope.unique)?;
    if !search.order.is_empty() {
        members.push_str(&format!("\"sort\":{},", search.order));
    }
    if let Some(after) = &arguments.after {
        if search.order.is_empty() {
            return Err(Refusal::new("argument \"after\" needs argument \"sort\" here")
                .detail(
                    "Nothing is known that tells the documents of this index apart: pages by score alone lose rows.",
                )
                .hint("Sort by something that ends with a field which is different for every document."));
        }
        let values = cursor::decode(&search.order, after).map_err(|why| {
            Refusal::new("argument \"after\" can't be used")
                .detail(format!("Reason: {why}."))
                .hint("It is the \"cursor\" of the last row of a call with the same \"sort\".")
        })?;
        members.push_str(&format!("\"search_after\":{values},"));
    }
    if let Some(min_score) = arguments.min_score {
        if !min_score.is_finite() {
            return Err(Refusal::new("argument \"min_score\" must be a finite number")
                .hint("Leave it out for hits of any score."));
        }
        members.push_str(&format!("\"min_score\":{min_score:?},"));
    }
    match (arguments.source, options.get("source")) {
        _ if !arguments.source_fields.is_empty() => {
            members.push_str(&format!("\"_source\":[{}],", joined(&arguments.source_fields)));
        }
        (false, _) => members.push_str("\"_source\":false,"),
        (true, Some(source)) => members.push_str(&format!("\"_source\":{source},")),
        (true, None) => {}
    }
    match (&arguments.highlight, options.get("highlight")) {
        (_, Some(highlight)) => members.push_str(&format!("\"highlight\":{highlight},")),
        (Some(fields), None) => {
            members.push_str(&format!("\"highlight\":{},", highlight(&named("highlight", fields)?)))
        }
        (None, None) => {}
    }
    let total = options.get("track_total_hits").map_or("true", |total| total.get());
    members.push_str(&format!("\"track_total_hits\":{total},"));
    for name in ["timeout", "track_scores"] {
        if let Some(value) = options.get(name) {
            members.push_str(&format!("\"{name}\":{value},"));
        }
    }
    search.members = members;
    Ok(search)
}

/// A search that only counts.
pub fn compose_count(arguments: &Arguments, scope: &Scope) -> Result<Search, Refusal> {
    let mut search = matching(arguments, scope)?;
    search.members = "\"size\":0,\"track_total_hits\":true,".to_owned();
    Ok(search)
}

impl Search {
    /// The body of the request; see [`visitor::bounded`] for `halvings`.
    pub fn body(&self, halvings: u32) -> String {
        let mut must = Vec::new();
        if let Some(VisitorText { text, max_words, settings }) = &self.text {
            let text = quoted(&visitor::bounded(text, *max_words, halvings));
            must.push(format!("{{\"simple_query_string\":{{\"query\":{text}{settings}}}}}"));
        }
        must.extend(self.dsl.clone());
        let query = match (must.as_slice(), self.filter.as_slice()) {
            ([], []) => "{\"match_all\":{}}".to_owned(),
            ([only], []) => only.clone(),
            ([], filter) => format!("{{\"bool\":{{\"filter\":[{}]}}}}", filter.join(",")),
            (must, []) => format!("{{\"bool\":{{\"must\":[{}]}}}}", must.join(",")),
            (must, filter) => {
                format!("{{\"bool\":{{\"must\":[{}],\"filter\":[{}]}}}}", must.join(","), filter.join(","))
            }
        };
        format!("{{{}\"query\":{query}}}", self.members)
    }

    /// Whether fewer words could help when the engine says that a query is too large.
    pub fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// Adds a bound on the time that the engine spends, unless the caller gave one.
    pub fn limit_time(&mut self, milliseconds: u64) {
        if !self.members.contains("\"timeout\":") {
            self.members.push_str(&format!("\"timeout\":\"{milliseconds}ms\","));
        }
    }
}

fn matching(arguments: &Arguments, scope: &Scope) -> Result<Search, Refusal> {
    let options = options(arguments.options.as_deref())?;
    if scope.confined {
        for (name, json) in [
            ("dsl", &arguments.dsl),
            ("filter", &arguments.filter),
            ("sort", &arguments.sort),
            ("options", &arguments.options),
        ] {
            confine(name, json.as_deref())?;
        }
    }
    let fields = searched(arguments, scope)?;
    let text = arguments.query.as_ref().map(|text| {
        let mut settings = ",\"lenient\":true,\"fuzzy_max_expansions\":10,\"fuzzy_prefix_length\":1".to_owned();
        if !fields.is_empty() {
            settings.push_str(&format!(",\"fields\":[{}]", joined(&fields)));
        }
        for name in ["default_operator", "minimum_should_match"] {
            if let Some(value) = options.get(name) {
                settings.push_str(&format!(",\"{name}\":{value}"));
            }
        }
        let counted = if fields.iter().any(|field| field.contains('*')) { 0 } else { fields.len() };
        VisitorText { text: text.clone(), max_words: visitor::words_for(counted), settings }
    });
    Ok(Search {
        text,
        dsl: arguments.dsl.as_deref().map(clause).transpose()?,
        filter: arguments.filter.as_deref().map(clauses).transpose()?.unwrap_or_default(),
        members: String::new(),
        order: String::new(),
    })
}

/// The fields that the text is looked for in.
fn searched(arguments: &Arguments, scope: &Scope) -> Result<Vec<String>, Refusal> {
    arguments.fields.as_ref().map_or_else(|| Ok(scope.search_fields.clone()), |fields| named("fields", fields))
}

/// The fields in an argument.
fn named(argument: &str, fields: &[Option<String>]) -> Result<Vec<String>, Refusal> {
    let names: Option<Vec<String>> = fields.iter().map(|field| field.clone().filter(|name| !name.is_empty())).collect();
    names.filter(|names| !names.is_empty()).ok_or_else(|| {
        Refusal::new(format!("argument \"{argument}\" must have elements, none of them null or empty"))
            .hint(format!("{argument} => ARRAY['title', 'description']"))
    })
}

fn clause(dsl: &str) -> Result<String, Refusal> {
    let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(dsl) else {
        return Err(Refusal::new("argument \"dsl\" must be a JSON object")
            .hint("It is a query of the engine's own language, as '{\"match\": {\"title\": \"shoes\"}}'."));
    };
    if members.contains_key("query") {
        return Err(Refusal::new("argument \"dsl\" is a query, not the body of a search request")
            .hint("Pass what is under \"query\"; for the rest see the arguments \"size\", \"sort\" and \"options\"."));
    }
    Ok(dsl.to_owned())
}

fn clauses(filter: &str) -> Result<Vec<String>, Refusal> {
    if filter.starts_with('{') {
        return Ok(vec![filter.to_owned()]);
    }
    let clauses: Vec<&RawValue> = serde_json::from_str(filter).unwrap_or_default();
    let clauses: Vec<String> = clauses.iter().map(|clause| clause.get().to_owned()).collect();
    if !filter.starts_with('[') || clauses.iter().any(|clause| !clause.starts_with('{')) {
        return Err(Refusal::new("argument \"filter\" must be a JSON object or an array of objects")
            .hint("filter => '{\"range\": {\"price\": {\"lte\": 120}}}'"));
    }
    Ok(clauses)
}

fn options(options: Option<&str>) -> Result<BTreeMap<String, Box<RawValue>>, Refusal> {
    let Some(text) = options else { return Ok(BTreeMap::new()) };
    let known = || format!("The options are: {}.", OPTIONS.join(", "));
    let options: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text)
        .map_err(|_| Refusal::new("argument \"options\" must be a JSON object").hint(known()))?;
    for (name, value) in &options {
        let kind = serde_json::from_str::<Value>(value.get()).unwrap_or_default();
        let expected = match name.as_str() {
            "default_operator" => match kind.as_str() {
                Some(word) if word.eq_ignore_ascii_case("and") || word.eq_ignore_ascii_case("or") => continue,
                _ => "\"and\" or \"or\"",
            },
            "highlight" if !kind.is_object() => "an object",
            "minimum_should_match" if !kind.is_string() && !kind.is_i64() => "a number or a text such as \"75%\"",
            "source" if !kind.is_array() && !kind.is_object() && !kind.is_string() => {
                "a field name or an array of them"
            }
            "timeout" if !kind.is_string() => "a text such as \"500ms\"",
            "track_scores" if !kind.is_boolean() => "a boolean",
            "track_total_hits" if !kind.is_boolean() && !kind.is_u64() => "a boolean or a number",
            known_name if OPTIONS.contains(&known_name) => continue,
            _ => {
                return Err(
                    Refusal::new(format!("argument \"options\" has an unknown option \"{name}\"")).hint(known())
                );
            }
        };
        return Err(Refusal::new(format!("option \"{name}\" of argument \"options\" must be {expected}")).hint(known()));
    }
    Ok(options)
}

/// The order as a JSON array that makes no two documents equal, if the index has something to tell them apart by.
fn order(sort: Option<&str>, unique: &[(String, String)]) -> Result<String, Refusal> {
    let mut elements: Vec<String> = match sort {
        None if unique.is_empty() => return Ok(String::new()),
        None => vec!["{\"_score\":{\"order\":\"desc\"}}".to_owned()],
        Some(sort) => match serde_json::from_str::<Vec<&RawValue>>(sort) {
            Ok(elements) => elements.iter().map(|element| element.get().to_owned()).collect(),
            Err(_) => vec![sort.to_owned()],
        },
    };
    if elements.is_empty() || elements.iter().any(|element| !element.starts_with(['"', '{'])) {
        return Err(Refusal::new("argument \"sort\" must be a field name, an object, or an array of these, in JSON")
            .hint("sort => '[{\"price\": \"asc\"}, \"_score\"]'"));
    }
    let mut sorted_by = BTreeSet::new();
    // By the score alone unless the caller says.
    for element in elements.iter().filter(|_| sort.is_some()) {
        match serde_json::from_str::<Value>(element) {
            Ok(Value::String(name)) => sorted_by.extend([name]),
            Ok(Value::Object(members)) => sorted_by.extend(members.into_iter().map(|(name, _)| name)),
            _ => {}
        }
    }
    for (field, kind) in unique {
        // The score is no field, and so can be neither a key's column nor asked for twice.
        if field == "_score" || sorted_by.contains(field) {
            continue;
        }
        let field = quoted(field);
        elements.push(format!("{{{field}:{{\"order\":\"asc\",\"unmapped_type\":{}}}}}", quoted(kind)));
    }
    Ok(format!("[{}]", elements.join(",")))
}

/// Passages as HTML: the text is escaped, so that only the marks are markup.
fn highlight(fields: &[String]) -> String {
    let fields: Vec<String> = fields.iter().map(|name| format!("{}:{{}}", quoted(name))).collect();
    format!("{{\"encoder\":\"html\",\"fields\":{{{}}}}}", fields.join(","))
}

/// Refuses queries that read another index: the caller's right to read was checked for this one only.
fn confine(argument: &str, json: Option<&str>) -> Result<(), Refusal> {
    let Some(json) = json else { return Ok(()) };
    // What is not JSON here is refused by name elsewhere.
    let value: Value = serde_json::from_str(json).unwrap_or_default();
    if !looks_elsewhere(&value) {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "argument \"{argument}\" looks up documents in an index by name, which is not possible here"
    ))
    .hint("es_search_index() can do so, for those who were granted it."))
}

fn looks_elsewhere(value: &Value) -> bool {
    match value {
        Value::Array(elements) => elements.iter().any(looks_elsewhere),
        Value::Object(members) => members.iter().any(|(name, member)| {
            let has_index = |value: &Value| value.get("index").is_some();
            let found = match name.as_str() {
                "terms" => member.as_object().is_some_and(|terms| terms.values().any(has_index)),
                "indexed_shape" | "percolate" => has_index(member),
                "like" | "unlike" => mentions_index(member),
                _ => false,
            };
            found || looks_elsewhere(member)
        }),
        _ => false,
    }
}

fn mentions_index(documents: &Value) -> bool {
    match documents {
        Value::Array(documents) => documents.iter().any(mentions_index),
        document => document.get("_index").is_some(),
    }
}

fn joined(texts: &[String]) -> String {
    texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(",")
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Arguments {
        Arguments { size: 10, source: true, ..Arguments::default() }
    }

    fn scope() -> Scope {
        Scope {
            search_fields: vec!["title^2".to_owned(), "body".to_owned()],
            unique: vec![("id".to_owned(), "long".to_owned())],
            confined: true,
        }
    }

    fn body(arguments: &Arguments) -> Value {
        serde_json::from_str(&compose(arguments, &scope()).expect("good arguments").body(0)).expect("JSON")
    }

    fn refused(arguments: &Arguments) -> String {
        compose(arguments, &scope()).expect_err("bad arguments").message
    }

    #[test]
    fn a_text_a_query_and_filters_combine() {
        let all = Arguments {
            query: Some("red \"shoes\"".to_owned()),
            dsl: Some("{\"term\":{\"a\":1}}".to_owned()),
            filter: Some("[{\"term\":{\"b\":2}}]".to_owned()),
            ..arguments()
        };
        let body = body(&all);
        assert_eq!(body["query"]["bool"]["must"][0]["simple_query_string"]["query"], "red \"shoes\"");
        assert_eq!(body["query"]["bool"]["must"][1]["term"]["a"], 1);
        assert_eq!(body["query"]["bool"]["filter"][0]["term"]["b"], 2);
        assert_eq!(body["sort"][1]["id"]["order"], "asc");
        assert!(self::body(&arguments())["query"].get("match_all").is_some());
    }

    #[test]
    fn numbers_keep_their_digits() {
        let filter = "{\"range\":{\"n\":{\"gte\":123456789012345678901234567890.5}}}";
        let search = compose(&Arguments { filter: Some(filter.to_owned()), ..arguments() }, &scope());
        assert!(search.is_ok_and(|search| search.body(0).contains(filter)));
    }

    #[test]
    fn pages_follow_each_other() {
        let first = compose(&arguments(), &scope()).expect("good arguments");
        let next = Arguments { after: Some(cursor::Encoder::new(&first.order).encode("[1.5,7]")), ..arguments() };
        assert_eq!(body(&next)["search_after"][1], 7);
        let other = Arguments { sort: Some("\"price\"".to_owned()), ..next };
        assert_eq!(refused(&other), "argument \"after\" can't be used");
    }

    #[test]
    fn a_key_that_is_called_as_the_score_is_no_field_to_sort_by() {
        let called = Scope { unique: vec![("_score".to_owned(), "long".to_owned())], ..scope() };
        for (sort, elements) in [(None, 1), (Some("\"price\""), 1), (Some("[\"price\", \"_score\"]"), 2)] {
            let search = compose(&Arguments { sort: sort.map(str::to_owned), ..arguments() }, &called).expect("good");
            let body: Value = serde_json::from_str(&search.body(0)).expect("JSON");
            assert_eq!(body["sort"].as_array().map(Vec::len), Some(elements), "{sort:?}");
        }
    }

    #[test]
    fn what_is_not_possible_is_refused() {
        for size in [0, -1, 10_001] {
            assert!(refused(&Arguments { size, ..arguments() }).contains("not between"));
        }
        for dsl in ["[]", "1", "null", "{\"query\":{}}"] {
            assert!(refused(&Arguments { dsl: Some(dsl.to_owned()), ..arguments() }).contains("\"dsl\""));
        }
        for filter in ["1", "null", "[1]", "\"x\""] {
            assert!(refused(&Arguments { filter: Some(filter.to_owned()), ..arguments() }).contains("\"filter\""));
        }
        for sort in ["1", "null", "[]", "[1]"] {
            assert!(refused(&Arguments { sort: Some(sort.to_owned()), ..arguments() }).contains("\"sort\""));
        }
        for options in ["[]", "{\"aggs\":{}}", "{\"timeout\":1}", "{\"track_total_hits\":-1}"] {
            assert!(refused(&Arguments { options: Some(options.to_owned()), ..arguments() }).contains("option"));
        }
        for fields in [vec![], vec![None], vec![Some(String::new())]] {
            assert!(refused(&Arguments { highlight: Some(fields.clone()), ..arguments() }).contains("\"highlight\""));
            assert!(refused(&Arguments { fields: Some(fields), ..arguments() }).contains("\"fields\""));
        }
        assert!(refused(&Arguments { min_score: Some(f64::NAN), ..arguments() }).contains("finite"));
    }

    #[test]
    fn other_indices_are_out_of_reach() {
        for dsl in [
            "{\"terms\":{\"a\":{\"index\":\"x\",\"id\":\"1\",\"path\":\"p\"}}}",
            "{\"bool\":{\"must\":[{\"more_like_this\":{\"like\":[{\"_index\":\"x\",\"_id\":\"1\"}]}}]}}",
            "{\"geo_shape\":{\"g\":{\"indexed_shape\":{\"index\":\"x\",\"id\":\"1\"}}}}",
            "{\"percolate\":{\"field\":\"q\",\"index\":\"x\",\"id\":\"1\"}}",
        ] {
            assert!(refused(&Arguments { dsl: Some(dsl.to_owned()), ..arguments() }).contains("by name"), "{dsl}");
        }
        let own = Arguments { dsl: Some("{\"terms\":{\"index\":[\"a\"]}}".to_owned()), ..arguments() };
        assert!(compose(&own, &scope()).is_ok());
    }

    #[test]
    fn without_a_unique_field_there_are_no_pages() {
        let search = compose(&arguments(), &Scope::default()).expect("good arguments");
        assert!(search.order.is_empty());
        let next = Arguments { after: Some("x".to_owned()), ..arguments() };
        assert!(compose(&next, &Scope::default()).is_err_and(|refusal| refusal.message.contains("\"sort\"")));
    }
}
