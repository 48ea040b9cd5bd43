//! A search engine, looked at from behind the extension's back.

use crate::environment::variable;
use serde_json::{Value, json};
use ureq::Agent;

/// A document as the engine holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its `_id`.
    pub id: String,
    /// Its `_source`.
    pub source: Value,
}

/// OpenSearch or Elasticsearch.
pub struct Engine {
    /// Its name in `stack/`.
    pub name: &'static str,
    /// The foreign server that stands for it in a test's database.
    pub server: &'static str,
    /// Where it is.
    pub url: String,
    agent: Agent,
}

impl Engine {
    /// The OpenSearch of the stack.
    pub fn opensearch() -> Self {
        Self::at("opensearch", "search", variable("OPENSEARCH_URL"))
    }

    /// The Elasticsearch of the stack.
    pub fn elasticsearch() -> Self {
        Self::at("elasticsearch", "es", variable("ES_URL"))
    }

    /// The engine that a foreign server of a test's database stands for.
    pub fn behind(server: &str) -> Self {
        let both = [Self::opensearch(), Self::elasticsearch()];
        both.into_iter()
            .find(|engine| engine.server == server)
            .unwrap_or_else(|| panic!("no engine behind server \"{server}\""))
    }

    fn at(name: &'static str, server: &'static str, url: String) -> Self {
        let agent = Agent::config_builder().http_status_as_error(false).build().into();
        Self { name, server, url, agent }
    }

    /// Sends a request and returns the status with the answer (null if it is not JSON).
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("content-type", "application/json")
            .body(text)
            .expect("a valid request");
        let mut response = self
            .agent
            .run(request)
            .unwrap_or_else(|error| panic!("{} does not answer to {method} {path}: {error}", self.name));
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(1 << 30)
            .read_to_string()
            .unwrap_or_else(|error| panic!("{} broke off its answer to {method} {path}: {error}", self.name));
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// As [`Engine::request`], for one that must succeed.
    pub fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.request(method, path, body);
        assert!(status < 300, "{} answers {status} to {method} {path}: {answer}", self.name);
        answer
    }

    /// Makes everything that the index holds visible to a search.
    pub fn refresh(&self, index: &str) {
        self.ask("POST", &format!("/{index}/_refresh"), None);
    }

    /// All that a search of the index finds now. Without a refresh: `fanout.wait()` has to have seen to it.
    pub fn documents(&self, index: &str) -> Vec<Document> {
        let body = json!({"size": 5000, "sort": ["_doc"], "query": {"match_all": {}}});
        let mut page = self.ask("POST", &format!("/{index}/_search?scroll=1m"), Some(body));
        let mut documents = Vec::new();
        loop {
            assert_eq!(page["_shards"]["failed"], 0, "a shard failed: {}", page["_shards"]);
            let hits = page["hits"]["hits"].as_array().cloned().unwrap_or_default();
            let last = hits.len() < 5000;
            documents.extend(hits.into_iter().map(|mut hit| Document {
                id: hit["_id"].as_str().unwrap_or_default().to_owned(),
                source: hit["_source"].take(),
            }));
            let scroll = page["_scroll_id"].clone();
            if last {
                self.request("DELETE", "/_search/scroll", Some(json!({"scroll_id": scroll})));
                return documents;
            }
            page = self.ask("POST", "/_search/scroll", Some(json!({"scroll": "1m", "scroll_id": scroll})));
        }
    }

    /// One document, by id, whether a search sees it yet or not.
    pub fn document(&self, index: &str, id: &str) -> Option<Value> {
        let (status, mut answer) = self.request("GET", &format!("/{index}/_doc/{}", percent(id)), None);
        (status == 200).then(|| answer["_source"].take())
    }

    /// Whether there is an index or alias of that name.
    pub fn exists(&self, index: &str) -> bool {
        self.request("HEAD", &format!("/{index}"), None).0 == 200
    }

    /// The concrete indices whose names contain `part`.
    pub fn indices(&self, part: &str) -> Vec<String> {
        let listing = self.ask("GET", &format!("/*{part}*/_settings?expand_wildcards=all"), None);
        listing.as_object().map(|indices| indices.keys().cloned().collect()).unwrap_or_default()
    }

    /// Removes the indices whose names contain `part`, and the documents of other indices that name them: who owns
    /// which target is noted in an index of its own.
    pub fn clean(&self, part: &str) {
        for index in self.indices(part) {
            self.request("DELETE", &format!("/{index}"), None);
        }
        self.request("POST", "/pg_fanout_control/_refresh", None);
        let (_, page) = self.request("POST", "/pg_fanout_control/_search", Some(json!({"size": 10000})));
        for hit in page["hits"]["hits"].as_array().into_iter().flatten() {
            if hit.to_string().contains(part) {
                let id = percent(hit["_id"].as_str().unwrap_or_default());
                self.request("DELETE", &format!("/pg_fanout_control/_doc/{id}"), None);
            }
        }
    }

    /// Removes the index of that name with all its generations, and the note of who owns it.
    pub fn remove(&self, index: &str) {
        for concrete in self.indices(&format!("{index}-fanout-")) {
            // A longer name may end in this one.
            if concrete.starts_with(index) {
                self.request("DELETE", &format!("/{concrete}"), None);
            }
        }
        self.request("DELETE", &format!("/pg_fanout_control/_doc/{}", percent(index)), None);
    }
}

/// A path segment of a URL.
fn percent(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    encoded.collect()
}
