//! Against real search engines: `ES_URL` and `OPENSEARCH_URL`, as `stack/env` sets them. Unset: skipped. Set but not
//! answering: failed.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{claim, server, unique};
use delivery::bulk::{BulkBody, BulkBuilder, BulkOutcome};
use delivery::config::{EngineConfig, Flavor};
use delivery::engine::Visible::{AfterSwap, AtOnce};
use delivery::engine::{Engine, IdPage, IndexState, TotalRelation, Which};
use delivery::ownership::{CONTROL_INDEX, ClaimOutcome, Heartbeat};
use delivery::{Error, ErrorKind};
use serde_json::{Value, json};

/// Runs a test on each engine that there is.
fn on_each(test: impl Fn(&Engine, &str)) {
    for variable in ["ES_URL", "OPENSEARCH_URL"] {
        let Some(url) = server(variable) else { continue };
        for compress in [false, true] {
            let mut config = EngineConfig::new(&[&url]).unwrap();
            config.compress = compress;
            println!("{variable}, compress: {compress}");
            test(&Engine::new(&config).unwrap(), &url);
        }
    }
}

/// An index of ours that is deleted at the end, also of a failed test.
struct Index<'a> {
    engine: &'a Engine,
    alias: String,
    concrete: String,
}

impl<'a> Index<'a> {
    fn new(engine: &'a Engine, mapping: Value) -> Index<'a> {
        let alias = unique("index");
        let concrete = format!("{alias}-fanout-1");
        let body = json!({"settings": {"number_of_replicas": 0, "number_of_shards": 2}, "mappings": mapping});
        assert_eq!(engine.ensure_index(&concrete, &alias, &body, AtOnce).unwrap(), IndexState::Created);
        Index { engine, alias, concrete }
    }

    fn bulk(&self, build: impl FnOnce(&mut BulkBuilder)) -> Vec<(u32, BulkOutcome)> {
        self.engine.bulk(&mut body(&self.concrete, build)).unwrap()
    }
}

impl Drop for Index<'_> {
    fn drop(&mut self) {
        let _ = self.engine.delete_index(&self.concrete);
    }
}

fn body(index: &str, build: impl FnOnce(&mut BulkBuilder)) -> BulkBody {
    let mut builder = BulkBuilder::new(index);
    build(&mut builder);
    builder.finish()
}

/// A request beside the crate's own calls.
fn raw(method: reqwest::Method, url: String, body: Value) -> u16 {
    let client = reqwest::blocking::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let request = client.request(method, url).header("content-type", "application/json");
    let request = if body.is_null() { request } else { request.body(body.to_string()) };
    request.send().unwrap().status().as_u16()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn a_probe_tells_who_is_there() {
    for (variable, flavor) in [("ES_URL", Flavor::Elasticsearch), ("OPENSEARCH_URL", Flavor::OpenSearch)] {
        let Some(url) = server(variable) else { continue };
        let engine = Engine::new(&EngineConfig::new(&[url]).unwrap()).unwrap();
        let info = engine.probe().unwrap();
        assert_eq!(info.flavor, Some(flavor));
        assert!(info.version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit())));
        assert_eq!(engine.flavor().unwrap(), flavor);
    }
}

#[test]
fn documents_are_written_and_deleted_by_version() {
    on_each(|engine, _| {
        let index = Index::new(engine, json!({"properties": {"n": {"type": "integer"}}}));
        let odd = "a\"b\\c\n/%.é";
        let outcomes = index.bulk(|bulk| {
            bulk.push_index(1, "1", 10, br#"{"n":1}"#);
            bulk.push_index(2, odd, 10, b"{\"n\":\n2}");
            bulk.push_index(3, "3", 10, br#"{"n":"not a number"}"#);
            bulk.push_index(4, "1", 9, br#"{"n":9}"#);
            bulk.push_delete(5, "never there", 10);
            bulk.push_index(6, &"x".repeat(600), 10, br#"{"n":6}"#);
            bulk.push_delete(7, odd, 12);
            bulk.push_index(8, odd, 11, br#"{"n":8}"#);
            bulk.push_index(9, "1", 10, br#"{"n":1}"#);
        });
        assert_eq!(outcomes[0], (1, BulkOutcome::Done));
        assert_eq!(outcomes[1], (2, BulkOutcome::Done));
        let BulkOutcome::Rejected { status: 400, reason } = &outcomes[2].1 else { panic!("{outcomes:?}") };
        assert!(reason.contains("not a number"), "{reason}");
        assert_eq!(outcomes[3], (4, BulkOutcome::VersionConflict { current: Some(10) }));
        assert_eq!(outcomes[4], (5, BulkOutcome::Done));
        assert!(matches!(outcomes[5], (6, BulkOutcome::Rejected { .. })));
        assert_eq!(outcomes[6], (7, BulkOutcome::Done));
        assert_eq!(outcomes[7], (8, BulkOutcome::VersionConflict { current: Some(12) }));
        assert_eq!(outcomes[8], (9, BulkOutcome::Done));

        let document = engine.get(&index.alias, "1").unwrap().unwrap();
        assert_eq!((document.version, document.source.unwrap().get()), (Some(10), r#"{"n":1}"#));
        assert!(engine.get(&index.alias, odd).unwrap().is_none());
        assert!(engine.get(&index.alias, "..").unwrap().is_none());
        engine.refresh(&index.alias).unwrap();
        assert_eq!(engine.count(&index.alias).unwrap(), 1);
    });
}

#[test]
fn there_may_be_an_index_a_period() {
    on_each(|engine, url| {
        let alias = unique("periods");
        let body =
            json!({"settings": {"number_of_replicas": 0}, "mappings": {"properties": {"n": {"type": "integer"}}}});
        let named = |generation: &str, ends: &[&str]| -> Vec<String> {
            ends.iter().map(|end| format!("{generation}-{end}")).collect()
        };
        let (one, two) = (format!("{alias}-fanout-1"), format!("{alias}-fanout-2"));
        let first = engine.ensure_periods(&one, &named(&one, &["2024", "none"]), &alias, &body, AtOnce).unwrap();
        assert_eq!(first.made, first.present);
        let again = engine.ensure_periods(&one, &named(&one, &["2025"]), &alias, &body, AtOnce).unwrap();
        assert_eq!(again.made.iter().collect::<Vec<_>>(), [&format!("{one}-2025")]);
        assert_eq!(again.present.len(), 3);
        assert_eq!(engine.alias_holders(&alias).unwrap(), named(&one, &["2024", "2025", "none"]));
        // One batch for two of them.
        let in_2025 = format!("{one}-2025");
        let outcomes = engine.bulk(&mut self::body(&format!("{one}-2024"), |bulk| {
            bulk.push_index(1, "1", 10, br#"{"n":1}"#);
            bulk.set_index(&in_2025);
            bulk.push_index(2, "1", 10, br#"{"n":2}"#);
            bulk.push_delete(3, "9", 10);
        }));
        assert_eq!(outcomes.unwrap(), [1, 2, 3].map(|slot| (slot, BulkOutcome::Done)));
        let page = engine.scan_ids(&one, None, 10).unwrap();
        let found: BTreeSet<(String, String)> = page.indices.into_iter().zip(page.ids).collect();
        assert_eq!(found, named(&one, &["2024", "2025"]).into_iter().map(|index| (index, "1".to_owned())).collect());
        let in_2026 = format!("{one}-2026");
        let which = |index| Which { id: "1", routing: None, index: Some(index) };
        let held = engine.get_many(&one, &[which(&in_2025), which(&in_2026)]).unwrap();
        assert_eq!(held[0].as_ref().unwrap().source.as_ref().unwrap().get(), r#"{"n":2}"#);
        assert!(held[1].is_none());
        // Nothing is sent where one of them is not there.
        let outcomes = engine.bulk(&mut self::body(&in_2025, |bulk| {
            bulk.push_index(1, "2", 10, b"{}");
            bulk.set_index(&in_2026);
            bulk.push_delete(2, "2", 10);
        }));
        assert_eq!(outcomes.unwrap(), [1, 2].map(|slot| (slot, BulkOutcome::IndexMissing)));
        // The next generation is not served before the alias moves, and then it alone is.
        engine.ensure_periods(&two, &named(&two, &["2024", "none"]), &alias, &body, AtOnce).unwrap();
        assert_eq!(engine.alias_holders(&alias).unwrap().len(), 3);
        engine.swap_alias(&alias, Some(&one), &two, &Value::Null, None).unwrap();
        engine.ensure_periods(&two, &named(&two, &["2025"]), &alias, &body, AtOnce).unwrap();
        assert_eq!(engine.alias_holders(&alias).unwrap(), named(&two, &["2024", "2025", "none"]));
        assert!(engine.delete_index(&one).unwrap() && !engine.delete_index(&one).unwrap());
        // An index of somebody else is left alone, and the alias of a generation is for its own.
        assert_eq!(raw(reqwest::Method::PUT, format!("{url}/{two}-2027"), json!({})), 200);
        assert_eq!(
            kind(engine.ensure_periods(&two, &named(&two, &["2027"]), &alias, &body, AtOnce)),
            ErrorKind::Conflict
        );
        let add = json!({"actions": [{"add": {"index": format!("{two}-2027"), "alias": two}}]});
        assert_eq!(raw(reqwest::Method::POST, format!("{url}/_aliases"), add), 200);
        assert_eq!(
            kind(engine.ensure_periods(&two, &named(&two, &["2024"]), &alias, &body, AtOnce)),
            ErrorKind::Conflict
        );
        assert_eq!(kind(engine.delete_index(&two)), ErrorKind::Conflict);
        assert_eq!(raw(reqwest::Method::DELETE, format!("{url}/{two}-2027"), Value::Null), 200);
        assert!(engine.delete_index(&two).unwrap());
    });
}

#[test]
fn a_crafted_document_stays_a_document() {
    on_each(|engine, _| {
        let victim = Index::new(engine, json!({}));
        let index = Index::new(engine, json!({"enabled": false}));
        assert_eq!(victim.bulk(|bulk| bulk.push_index(0, "1", 1, b"{}")), [(0, BulkOutcome::Done)]);
        let crafted = format!(
            "{{\"v\":[1,\n{{\"delete\":{{\"_index\":\"{}\",\"_id\":\"1\"}}}},\n{{\"index\":{{\"_id\":\"x\"}}}}\n]}}",
            victim.concrete
        );
        assert_eq!(index.bulk(|bulk| bulk.push_index(0, "a", 1, crafted.as_bytes())), [(0, BulkOutcome::Done)]);
        assert!(engine.get(&victim.concrete, "1").unwrap().is_some());
        assert!(engine.get(&index.concrete, "x").unwrap().is_none());
        assert!(engine.get(&index.concrete, "a").unwrap().is_some());
    });
}

#[test]
fn nothing_is_sent_to_an_index_that_is_missing_or_not_ours() {
    on_each(|engine, url| {
        let missing = unique("missing");
        for delete in [true, false] {
            let mut body = body(&missing, |bulk| {
                if delete {
                    bulk.push_delete(7, "a", 5);
                } else {
                    bulk.push_index(7, "a", 5, b"{}");
                }
            });
            assert_eq!(engine.bulk(&mut body).unwrap(), [(7, BulkOutcome::IndexMissing)]);
            assert_eq!(kind(engine.count(&missing)), ErrorKind::NotFound, "it was not created");
        }

        // Deleted just after we looked: the next batch does not make it anew.
        let index = Index::new(engine, json!({}));
        let delete = || raw(reqwest::Method::DELETE, format!("{url}/{}", index.concrete), Value::Null);
        type Push = fn(&mut BulkBuilder);
        let batches: [Push; 3] = [
            |bulk| bulk.push_delete(1, "a", 2),
            |bulk| bulk.push_index(1, "a", 3, b"{}"),
            |bulk| {
                bulk.push_index(1, "a", 3, b"{}");
                bulk.push_delete(2, "b", 3);
            },
        ];
        for batch in batches {
            assert_eq!(index.bulk(|bulk| bulk.push_index(1, "a", 1, b"{}")), [(1, BulkOutcome::Done)]);
            assert_eq!(delete(), 200);
            assert!(index.bulk(batch).iter().all(|(_, outcome)| *outcome == BulkOutcome::IndexMissing));
            assert_eq!(kind(engine.count(&index.concrete)), ErrorKind::NotFound, "it was not made");
            engine.ensure_index(&index.concrete, &index.alias, &json!({}), AtOnce).unwrap();
        }

        // Made anew by somebody else.
        assert_eq!(delete(), 200);
        assert_eq!(raw(reqwest::Method::PUT, format!("{url}/{}", index.concrete), json!({})), 200);
        assert_eq!(index.bulk(|bulk| bulk.push_delete(1, "a", 2)), [(1, BulkOutcome::IndexMissing)]);
        assert_eq!(index.bulk(|bulk| bulk.push_index(1, "a", 3, b"{}")), [(1, BulkOutcome::IndexMissing)]);
        assert_eq!(kind(engine.ensure_index(&index.concrete, &index.alias, &json!({}), AtOnce)), ErrorKind::Conflict);
        assert_eq!(kind(engine.delete_index(&index.concrete)), ErrorKind::Conflict);
        assert_eq!(delete(), 200);
    });
}

#[test]
fn an_index_stands_behind_its_alias() {
    on_each(|engine, url| {
        let index = Index::new(engine, json!({}));
        let body = json!({"settings": {"number_of_replicas": 0}});
        assert_eq!(engine.ensure_index(&index.concrete, &index.alias, &body, AtOnce).unwrap(), IndexState::Exists);
        let settings = engine_settings(url, &index.concrete);
        assert_eq!(settings["gc_deletes"], "1h");

        // A new generation: the alias stays until it is swapped.
        let next = Index { engine, alias: index.alias.clone(), concrete: format!("{}-fanout-2", index.alias) };
        assert_eq!(engine.ensure_index(&next.concrete, &next.alias, &body, AtOnce).unwrap(), IndexState::Created);
        assert_eq!(next.bulk(|bulk| bulk.push_index(0, "new", 1, b"{}")), [(0, BulkOutcome::Done)]);
        assert!(engine.get(&index.alias, "new").unwrap().is_none());
        // It leaves whichever index of ours has it, since a rebuild may have overtaken another; then saying so again is harmless.
        engine.swap_alias(&index.alias, Some("another"), &next.concrete, &Value::Null, None).unwrap();
        for _ in 0..2 {
            engine.swap_alias(&index.alias, Some(&index.concrete), &next.concrete, &Value::Null, None).unwrap();
            assert!(engine.get(&index.alias, "new").unwrap().is_some());
        }
        assert!(engine.delete_index(&index.concrete).unwrap());
        assert!(!engine.delete_index(&index.concrete).unwrap());
        assert!(engine.get(&index.alias, "new").unwrap().is_some());

        // The alias was removed by somebody: it comes back.
        let path = format!("{url}/{}/_alias/{}", next.concrete, next.alias);
        assert_eq!(raw(reqwest::Method::DELETE, path, Value::Null), 200);
        assert_eq!(engine.ensure_index(&next.concrete, &next.alias, &body, AtOnce).unwrap(), IndexState::Exists);
        assert!(engine.get(&next.alias, "new").unwrap().is_some());
    });
}

/// As when a sync gets another name for its index: the further aliases leave what served before together with it.
#[test]
fn an_index_that_is_to_serve_later_has_no_alias_before() {
    on_each(|engine, _| {
        let (former, alias) = (unique("former"), unique("later"));
        let (old, new) = (format!("{former}-fanout-1"), format!("{alias}-fanout-2"));
        let further = json!({ format!("{alias}-all"): {} });
        let body = json!({"settings": {"number_of_replicas": 0}, "aliases": further});
        let holders = |alias: &str| engine.alias_holders(alias).unwrap().join(",");
        assert_eq!(engine.ensure_index(&old, &former, &body, AtOnce).unwrap(), IndexState::Created);
        for state in [IndexState::Created, IndexState::Exists] {
            assert_eq!(engine.ensure_index(&new, &alias, &body, AfterSwap).unwrap(), state);
            assert_eq!(holders(&alias), "");
        }
        let all = format!("{alias}-all");
        assert_eq!(holders(&all), old);
        for _ in 0..2 {
            engine.swap_alias(&alias, Some("another"), &new, &further, Some(&former)).unwrap();
            assert_eq!(holders(&alias), new);
            assert_eq!(holders(&all), new);
            assert_eq!(holders(&former), old);
        }
        for index in [old, new] {
            engine.delete_index(&index).unwrap();
        }
    });
}

fn engine_settings(url: &str, index: &str) -> Value {
    let client = reqwest::blocking::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let text = client.get(format!("{url}/{index}/_settings")).send().unwrap().text().unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[index]["settings"]["index"].clone()
}

#[test]
fn what_is_not_ours_is_left_alone() {
    on_each(|engine, url| {
        let foreign = unique("foreign");
        let alias = unique("alias");
        let body = json!({"aliases": {&alias: {}}, "settings": {"number_of_replicas": 0}});
        assert_eq!(raw(reqwest::Method::PUT, format!("{url}/{foreign}"), body), 200);
        let concrete = format!("{foreign}-fanout-1");
        for alias in [&foreign, &alias] {
            assert_eq!(kind(engine.ensure_index(&concrete, alias, &json!({}), AtOnce)), ErrorKind::Conflict);
        }
        assert_eq!(kind(engine.ensure_index(&foreign, &unique("free"), &json!({}), AtOnce)), ErrorKind::Conflict);
        assert_eq!(kind(engine.delete_index(&foreign)), ErrorKind::Conflict);
        assert_eq!(kind(engine.swap_alias(&alias, None, &concrete, &Value::Null, None)), ErrorKind::Conflict);
        let mut body = self::body(&foreign, |bulk| bulk.push_delete(0, "a", 1));
        assert_eq!(engine.bulk(&mut body).unwrap(), [(0, BulkOutcome::IndexMissing)]);
        assert_eq!(raw(reqwest::Method::DELETE, format!("{url}/{foreign}"), Value::Null), 200);
    });
}

#[test]
fn all_ids_are_found() {
    on_each(|engine, _| {
        let index = Index::new(engine, json!({"enabled": false}));
        let ids: BTreeSet<String> = (0..257).map(|n| format!("id {n} %\"é")).collect();
        let outcomes = index.bulk(|bulk| {
            for (slot, id) in ids.iter().enumerate() {
                bulk.push_index(slot as u32, id, 1, b"{}");
            }
        });
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == BulkOutcome::Done));
        engine.refresh(&index.concrete).unwrap();
        let mut found = BTreeSet::new();
        let mut cursor = None;
        let mut pages = 0;
        loop {
            let page = engine.scan_ids(&index.concrete, cursor.as_deref(), 100).unwrap();
            pages += 1;
            for id in page.ids {
                assert!(found.insert(id));
            }
            cursor = page.cursor;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!((found, pages), (ids, 4));

        let page = engine.scan_ids(&index.concrete, None, 10).unwrap();
        let cursor = page.cursor.unwrap();
        engine.close_scan(&cursor).unwrap();
        engine.close_scan(&cursor).unwrap();
        assert_eq!(kind(engine.scan_ids(&index.concrete, Some(&cursor), 10)), ErrorKind::NotFound);
        assert_eq!(kind(engine.scan_ids(&unique("missing"), None, 10)), ErrorKind::NotFound);
    });
}

#[test]
fn a_listing_goes_on_at_any_of_its_cursors() {
    on_each(|engine, _| {
        let index = Index::new(engine, json!({"enabled": false}));
        let write = |version: u64, ids: std::ops::Range<u32>| {
            let outcomes = index.bulk(|bulk| {
                for id in ids {
                    bulk.push_index(id, &id.to_string(), version, b"{}");
                }
            });
            assert!(outcomes.iter().all(|(_, outcome)| *outcome == BulkOutcome::Done));
        };
        assert_eq!(engine.list_ids(&index.concrete, None, 10).unwrap(), IdPage::default());
        write(1, 0..200);
        // Pages of one are shorter than what both shards have with one number.
        for size in [1, 2, 3, 64, 1000] {
            let mut pages = Vec::new();
            let mut cursor = None;
            loop {
                let page = engine.list_ids(&index.concrete, cursor.as_deref(), size).unwrap();
                assert_eq!(page.ids.len(), page.versions.len());
                let next = page.cursor.clone();
                pages.push((cursor, page));
                cursor = next;
                if cursor.is_none() {
                    break;
                }
            }
            let ids: Vec<u32> = pages.iter().flat_map(|(_, page)| &page.ids).map(|id| id.parse().unwrap()).collect();
            assert_eq!(ids.len(), 200, "size {size}: each once");
            assert_eq!(ids.iter().copied().collect::<BTreeSet<u32>>(), (0..200).collect(), "size {size}");
            for (cursor, page) in pages.iter().filter(|(cursor, _)| cursor.is_some()).step_by(pages.len() / 3 + 1) {
                assert_eq!(&engine.list_ids(&index.concrete, cursor.as_deref(), size).unwrap(), page);
            }
        }
        // However much is written meanwhile, it ends; what stays as it is is not missed.
        let first = engine.list_ids(&index.concrete, None, 64).unwrap();
        write(2, 0..20);
        write(2, 300..400);
        engine.refresh(&index.concrete).unwrap();
        let mut ids: BTreeSet<u32> = first.ids.iter().map(|id| id.parse().unwrap()).collect();
        let mut cursor = first.cursor;
        while let Some(at) = cursor {
            let page = engine.list_ids(&index.concrete, Some(&at), 64).unwrap();
            ids.extend(page.ids.iter().map(|id| id.parse::<u32>().unwrap()));
            cursor = page.cursor;
        }
        assert!((20..200).all(|id| ids.contains(&id)), "{ids:?}");
        assert_eq!(kind(engine.list_ids(&index.concrete, Some("nonsense"), 10)), ErrorKind::BadRequest);
        assert_eq!(kind(engine.list_ids(&unique("missing"), None, 10)), ErrorKind::NotFound);
    });
}

#[test]
fn searches_keep_what_the_engine_says() {
    on_each(|engine, _| {
        let mapping = json!({"properties": {"title": {"type": "text"}, "n": {"type": "integer"}}});
        let index = Index::new(engine, mapping);
        index.bulk(|bulk| {
            for n in 0..30u32 {
                let document = format!("{{\"title\":\"trail shoe {n}\", \"n\" : {n}}}");
                bulk.push_index(n, &n.to_string(), 1, document.as_bytes());
            }
        });
        engine.refresh(&index.alias).unwrap();
        let body = json!({"query": {"match": {"title": "shoe"}}, "highlight": {"fields": {"title": {}}}, "size": 5,
            "track_total_hits": true, "aggs": {"most": {"max": {"field": "n"}}}});
        let reply = engine.search(Some(&index.alias), body.to_string().as_bytes(), None).unwrap();
        let response = reply.read().unwrap();
        assert_eq!(response.total, Some((30, TotalRelation::Equal)));
        assert_eq!((response.hits.len(), response.shards_total, response.shards_failed), (5, 2, 0));
        assert!(response.hits[0].score.unwrap() > 0.0);
        assert!(response.hits[0].highlight.as_ref().unwrap().get().contains("<em>shoe</em>"));
        let source = response.hits[0].source.as_ref().unwrap().get();
        assert!(source.contains("\"n\" : "), "the text as it was sent: {source}");
        assert!(response.aggregations.unwrap().get().contains("29"));

        let error = engine.search(Some(&index.alias), br#"{"query":{"term":{"n":"not a number"}}}"#, None).unwrap_err();
        assert_eq!((error.kind(), error.status()), (ErrorKind::BadRequest, Some(400)));
        assert!(error.message().contains("not a number"), "{error}");
        assert_eq!(kind(engine.search(Some(&unique("missing")), b"{}", None)), ErrorKind::NotFound);
        assert_eq!(kind(engine.search(Some(&index.alias), b"{}", Some(Duration::from_nanos(1)))), ErrorKind::Timeout);

        // A point in time, page after page.
        let pit = engine.open_pit(&index.alias, Duration::from_secs(60)).unwrap();
        index.bulk(|bulk| bulk.push_delete(0, "7", 2));
        engine.refresh(&index.alias).unwrap();
        let mut seen = BTreeSet::new();
        let mut body =
            json!({"size": 7, "pit": {"id": pit, "keep_alive": "60s"}, "sort": [{"n": "asc"}, "_shard_doc"]});
        loop {
            let reply = engine.search(None, body.to_string().as_bytes(), None).unwrap();
            let page = reply.read().unwrap();
            let Some(last) = page.hits.last() else { break };
            body["search_after"] = serde_json::from_str(last.sort.as_ref().unwrap().get()).unwrap();
            body["pit"]["id"] = page.pit_id.clone().unwrap().into();
            seen.extend(page.hits.into_iter().map(|hit| hit.id.into_owned()));
        }
        assert_eq!(seen.len(), 30);
        let pit = body["pit"]["id"].as_str().unwrap();
        engine.close_pit(pit).unwrap();
        engine.close_pit(pit).unwrap();
    });
}

#[test]
fn a_body_over_the_limit_is_too_large() {
    on_each(|engine, _| {
        let index = Index::new(engine, json!({"enabled": false}));
        let document = format!("{{\"t\":\"{}\"}}", "x".repeat(8 << 20));
        let mut body = body(&index.concrete, |bulk| {
            for n in 0..14 {
                bulk.push_index(n, &n.to_string(), 1, document.as_bytes());
            }
        });
        let size = body.bytes();
        assert_eq!(kind(engine.bulk(&mut body)), ErrorKind::TooLarge);
        assert_eq!(body.bytes(), size, "its memory came back");
        assert_eq!(index.bulk(|bulk| bulk.push_index(0, "0", 1, b"{}")), [(0, BulkOutcome::Done)]);
    });
}

#[test]
fn one_owner_at_a_time() {
    on_each(|engine, _| {
        let target = unique("target");
        let owned = |outcome: ClaimOutcome| match outcome {
            ClaimOutcome::Owned(ownership) => ownership,
            other => panic!("{other:?}"),
        };
        let first = owned(engine.claim(&claim(&target, "a", "1")).unwrap());
        let begun = first.epoch;
        let Heartbeat::Kept(first) = engine.heartbeat(&first).unwrap() else { panic!() };

        // Another one watches: refused as long as there are heartbeats, then let in.
        let mut other = claim(&target, "b", "1");
        let mut kept = first;
        for _ in 0..6 {
            match engine.claim(&other).unwrap() {
                ClaimOutcome::OwnedBy { identity, by, sighting, .. } => {
                    assert_eq!((identity.as_str(), by.as_str()), ("a", "a 1"));
                    other.sighting = Some(sighting);
                }
                ClaimOutcome::Owned(_) => panic!("took it from a living owner"),
            }
            std::thread::sleep(Duration::from_millis(100));
            let Heartbeat::Kept(again) = engine.heartbeat(&kept).unwrap() else { panic!() };
            kept = again;
        }
        let second = loop {
            match engine.claim(&other).unwrap() {
                ClaimOutcome::OwnedBy { sighting, .. } => other.sighting = Some(sighting),
                ClaimOutcome::Owned(ownership) => break ownership,
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(second.epoch, begun + 1);
        assert_eq!(engine.heartbeat(&kept).unwrap(), Heartbeat::Superseded { by: "b 1".into() });
        engine.release(&kept).unwrap();

        // A restart of the same identity takes over at once; so does force.
        let third = owned(engine.claim(&claim(&target, "b", "2")).unwrap());
        assert_eq!(third.epoch, begun + 2);
        let mut forced = claim(&target, "a", "9");
        forced.force = true;
        let fourth = owned(engine.claim(&forced).unwrap());
        assert_eq!(fourth.epoch, begun + 3);
        engine.release(&fourth).unwrap();
        assert_eq!(engine.heartbeat(&fourth).unwrap(), Heartbeat::Superseded { by: String::new() });
        assert!(engine.get(CONTROL_INDEX, &target).unwrap().is_none());
    });
}

#[test]
fn what_is_given_up_while_a_sign_of_life_is_given_is_gone() {
    on_each(|engine, _| {
        let target = unique("given_up");
        for _ in 0..15 {
            let ClaimOutcome::Owned(ownership) = engine.claim(&claim(&target, "a", "1")).unwrap() else { panic!() };
            std::thread::scope(|scope| {
                scope.spawn(|| engine.heartbeats(std::slice::from_ref(&ownership)).unwrap());
                engine.release(&ownership).unwrap();
            });
            assert!(engine.get(CONTROL_INDEX, &target).unwrap().is_none());
        }
    });
}

#[test]
fn signs_of_life_of_many_targets_are_given_together() {
    on_each(|engine, _| {
        let name = unique("many");
        let mut owned: Vec<_> = (0..510)
            .map(|n| match engine.claim(&claim(&format!("{name} {n}"), "a", "1")).unwrap() {
                ClaimOutcome::Owned(ownership) => ownership,
                other => panic!("{other:?}"),
            })
            .collect();
        let beat_of = |n: usize| {
            let source = engine.get(CONTROL_INDEX, &format!("{name} {n}")).unwrap().unwrap().source.unwrap();
            serde_json::from_str::<serde_json::Value>(source.get()).unwrap()["heartbeat_ms"].as_u64().unwrap()
        };
        // One was taken over, one is gone.
        let mut forced = claim(&format!("{name} 7"), "b", "1");
        forced.force = true;
        assert!(matches!(engine.claim(&forced).unwrap(), ClaimOutcome::Owned(_)));
        engine.release(&owned[9]).unwrap();
        for _ in 0..2 {
            let before: Vec<u64> = [0, 8, 509].map(beat_of).to_vec();
            std::thread::sleep(Duration::from_millis(3));
            let outcomes = engine.heartbeats(&owned).unwrap();
            assert_eq!(outcomes.len(), owned.len());
            for (n, outcome) in outcomes.into_iter().enumerate() {
                match (n, outcome.unwrap()) {
                    (7, outcome) => assert_eq!(outcome, Heartbeat::Superseded { by: "b 1".into() }),
                    (9, outcome) => assert_eq!(outcome, Heartbeat::Superseded { by: String::new() }),
                    (_, Heartbeat::Kept(kept)) => owned[n] = kept,
                    (_, other) => panic!("{n}: {other:?}"),
                }
            }
            assert!(before.iter().zip([0, 8, 509]).all(|(&before, n)| before < beat_of(n)));
        }
        owned.iter().for_each(|ownership| engine.release(ownership).unwrap());
    });
}

#[test]
fn of_many_that_claim_at_once_one_wins() {
    on_each(|engine, _| {
        let target = unique("race");
        let winners = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|n| {
                    let claim = claim(&target, &format!("identity {n}"), "1");
                    scope.spawn(move || matches!(engine.claim(&claim).unwrap(), ClaimOutcome::Owned(_)))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|won| *won).count()
        });
        assert_eq!(winners, 1);
        let mut forced = claim(&target, "cleanup", "1");
        forced.force = true;
        if let ClaimOutcome::Owned(ownership) = engine.claim(&forced).unwrap() {
            engine.release(&ownership).unwrap();
        }
    });
}
