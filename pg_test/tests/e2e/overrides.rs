//! What a caller says about an index: mapping, settings, aliases, routing, pipeline; and what is refused.

use pg_test::{Engine, World, assert_in_step, differences, eventually, on_each_engine};
use serde_json::{Value, json};
use std::time::Duration;

on_each_engine!(
    a_whole_mapping_is_taken,
    settings_are_taken,
    further_aliases_follow_the_index,
    documents_are_routed_by_their_columns,
    a_waiter_finds_documents_whose_routing_changed,
    documents_go_through_a_pipeline,
    documents_are_as_a_pipeline_leaves_them,
    what_an_engine_refuses_is_told_in_its_words,
);

fn index(world: &World, engine: &Engine) -> Value {
    let name = world.index_name("product");
    engine.ask("GET", &format!("/{name}"), None)[format!("{name}-fanout-1")].clone()
}

fn products(world: &mut World, engine: &Engine, more: &str) -> String {
    world.db.exec(
        "CREATE TABLE product (id int PRIMARY KEY, tenant text, name text, details jsonb);
         INSERT INTO product SELECT n, 'tenant ' || n % 7, 'shoe', '{\"size\": \"42\"}' FROM generate_series(1, 200) n",
    );
    let sync = world.index_table("product", engine, more);
    world.wait(&sync);
    sync
}

fn a_whole_mapping_is_taken(world: &mut World, engine: &Engine) {
    let mapping = json!({
        "properties": {"tenant": {"type": "keyword"}},
        "dynamic_templates": [{"sizes": {"path_match": "details.size", "mapping": {"type": "integer"}}}],
        "dynamic": "strict",
    });
    let sync = products(world, engine, &format!(", mapping => '{mapping}'"));
    assert_in_step(world, &sync);
    let mappings = index(world, engine)["mappings"].clone();
    assert_eq!(mappings["dynamic"], "strict");
    assert_eq!(mappings["properties"]["tenant"], json!({"type": "keyword"}));
    assert_eq!(mappings["properties"]["details"]["properties"]["size"], json!({"type": "integer"}));
    assert_eq!(mappings["properties"]["name"]["type"], "text");
}

fn settings_are_taken(world: &mut World, engine: &Engine) {
    let settings = json!({"number_of_shards": 3, "index": {"number_of_replicas": 0},
        "analysis": {"analyzer": {"plain": {"type": "custom", "tokenizer": "standard"}}}});
    let mapping = json!({"name": {"type": "text", "analyzer": "plain"}});
    let sync = products(world, engine, &format!(", settings => '{settings}', mapping => '{mapping}'"));
    assert_in_step(world, &sync);
    let set = index(world, engine)["settings"]["index"].clone();
    assert_eq!((&set["number_of_shards"], &set["number_of_replicas"]), (&json!("3"), &json!("0")));
    assert_eq!(set["analysis"]["analyzer"]["plain"]["tokenizer"], "standard");
    // The analyzer has no filter that makes letters small.
    assert_eq!(world.hits(engine, "product", &json!({"term": {"name": "shoe"}})).len(), 200);
}

fn further_aliases_follow_the_index(world: &mut World, engine: &Engine) {
    let (all, one) = (world.index_name("all"), world.index_name("one"));
    let aliases = json!({&all: {}, &one: {"filter": {"term": {"tenant.keyword": "tenant 1"}}}});
    let sync = products(world, engine, &format!(", aliases => '{aliases}'"));
    let count = |alias: &str| {
        engine.refresh(alias);
        engine.ask("GET", &format!("/{alias}/_count"), None)["count"].as_u64()
    };
    assert_eq!((count(&all), count(&one)), (Some(200), Some(29)));
    // While the next index is being filled, and after.
    world.db.exec(&format!("DELETE FROM product WHERE id > 100; SELECT fanout.resync('{sync}')"));
    let generations = || engine.ask("GET", &format!("/{all}/_alias/{all}"), None).as_object().map_or(0, |it| it.len());
    eventually("the alias is at the second index", Duration::from_secs(30), || {
        assert_eq!(generations(), 1);
        engine.ask("GET", &format!("/{all}/_alias/{all}"), None).to_string().contains("-fanout-2")
    });
    world.wait(&sync);
    assert_eq!((count(&all), count(&one)), (Some(100), Some(15)));
    // An array of names will do.
    let names = json!([world.index_name("short")]);
    world.db.exec("CREATE TABLE other (id int PRIMARY KEY)");
    let other = world.index_table("other", engine, &format!(", aliases => '{names}'"));
    world.wait(&other);
    assert_eq!(count(&world.index_name("short")), Some(0));
}

fn documents_are_routed_by_their_columns(world: &mut World, engine: &Engine) {
    let sync = products(world, engine, ", routing => '${tenant}', settings => '{\"number_of_shards\": 5}'");
    assert_in_step(world, &sync);
    let routed = |world: &World, tenant: &str| {
        let path = format!("/{}/_search?routing=tenant%2520{tenant}&size=0", world.index_name("product"));
        let query = json!({"query": {"term": {"tenant.keyword": format!("tenant {tenant}")}}});
        engine.ask("POST", &path, Some(query))["hits"]["total"]["value"].as_u64()
    };
    assert_eq!(routed(world, "1"), Some(29));
    // A row that gets another routing leaves its shard, or is written again where that is the same one.
    for shift in 1..6 {
        world.db.exec(&format!("UPDATE product SET tenant = 'tenant ' || (id + {shift}) % 7 WHERE id <= 100"));
        assert_in_step(world, &sync);
    }
    world.db.exec("UPDATE product SET tenant = NULL WHERE id = 5; UPDATE product SET tenant = '' WHERE id = 6; DELETE FROM product WHERE id > 150");
    assert_in_step(world, &sync);
    let verified = world.db.rows(&format!("CALL fanout.verify('{sync}')")).remove(0);
    let numbers = ["150", "150", "0", "0", "0"].map(|number| Some(number.to_owned()));
    assert_eq!(verified[..5], numbers, "rows, documents, missing, extra, different");
    // What was missed is found by a reconcile: rows that went, and rows that moved.
    world.db.exec("ALTER TABLE product DISABLE TRIGGER USER");
    world.db.exec("UPDATE product SET tenant = 'moved' WHERE id < 20; DELETE FROM product WHERE id > 120");
    world.db.exec(
        "DO $$ DECLARE t name; BEGIN
             FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'product'::regclass LOOP
                 EXECUTE format('ALTER TABLE product ENABLE ALWAYS TRIGGER %I', t);
             END LOOP;
         END $$",
    );
    engine.refresh(&world.index_name("product"));
    assert!(!differences(world, &sync).is_empty());
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    assert_in_step(world, &sync);
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

/// In one shard the deletion by the old routing takes the document along: it is written again, and only then waited for.
fn a_waiter_finds_documents_whose_routing_changed(world: &mut World, engine: &Engine) {
    let sync = products(world, engine, ", routing => '${tenant}', settings => '{\"number_of_shards\": 1}'");
    assert_in_step(world, &sync);
    for shift in 1..20 {
        world.db.exec(&format!("UPDATE product SET tenant = 'tenant ' || (id + {shift}) % 7"));
        assert_in_step(world, &sync);
    }
}

fn documents_go_through_a_pipeline(world: &mut World, engine: &Engine) {
    let pipeline = format!("pipeline_{}", world.tag);
    world.db.exec("CREATE TABLE product (id int PRIMARY KEY); INSERT INTO product VALUES (1)");
    let sync = world.index_table("product", engine, &format!(", pipeline => '{pipeline}'"));
    let told = format!("pipeline with id [{pipeline}] does not exist");
    let told = |world: &mut World| world.status(&sync, "last_error").contains(&told);
    eventually("the missing pipeline is told", Duration::from_secs(20), || told(world));
    assert_eq!(world.status(&sync, "dead_letters"), "0");
    engine.ask("PUT", &format!("/_ingest/pipeline/{pipeline}"), Some(json!({"processors": []})));
    assert_in_step(world, &sync);
    engine.ask("DELETE", &format!("/_ingest/pipeline/{pipeline}"), None);
}

/// Where the engine has processors: the bare core of Elasticsearch 8 and 9 has none, an Elasticsearch 7 and OpenSearch have.
fn documents_are_as_a_pipeline_leaves_them(world: &mut World, engine: &Engine) {
    let nodes = engine.ask("GET", "/_nodes/ingest", None)["nodes"].take();
    let able = |node: &Value| {
        node["roles"].to_string().contains("ingest") && node["ingest"]["processors"].to_string().contains("\"set\"")
    };
    if !nodes.as_object().is_some_and(|nodes| nodes.values().any(able)) {
        println!("not tested: this {} has no processors for pipelines", engine.name);
        return;
    }
    let pipeline = format!("pipeline_{}", world.tag);
    let processors = |label: &str| {
        json!({"processors": [
            {"set": {"field": "label", "value": label}}, {"remove": {"field": "secret"}},
            {"drop": {"if": "ctx.name == 'unwanted'"}}, {"fail": {"if": "ctx.name == 'wrong'", "message": "no such name"}}]})
    };
    engine.ask("PUT", &format!("/_ingest/pipeline/{pipeline}"), Some(processors("one")));
    world.db.exec(
        "CREATE TABLE product (id int PRIMARY KEY, name text, secret text);
         INSERT INTO product SELECT i, 'shoe', 'x' FROM generate_series(1, 300) AS i;
         INSERT INTO product VALUES (1000, 'unwanted', 'x'), (1001, 'wrong', 'x')",
    );
    let sync = world.index_table("product", engine, &format!(", pipeline => '{pipeline}'"));
    world.wait(&sync);
    let documents = |world: &World| engine.documents(&world.index_name("product"));
    assert_eq!(world.document(engine, "product", "7"), json!({"id": 7, "name": "shoe", "label": "one"}));
    assert_eq!(documents(world).len(), 300, "one is dropped, one is refused");
    let letters = world.db.rows("SELECT id, reason FROM fanout.dead_letters");
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0][0].as_deref(), Some("1001"));
    assert!(letters[0][1].as_deref().is_some_and(|reason| reason.contains("no such name")), "{letters:?}");
    // A change of the row, of the sync, and a reconcile go the same way; a deletion needs none.
    world.db.exec("UPDATE product SET name = 'boot' WHERE id = 7; UPDATE product SET name = 'sock' WHERE id = 1001; DELETE FROM product WHERE id = 8");
    world.wait(&sync);
    assert_eq!(world.document(engine, "product", "7"), json!({"id": 7, "name": "boot", "label": "one"}));
    assert_eq!(world.document(engine, "product", "1001")["label"], "one");
    assert_eq!((documents(world).len(), world.status(&sync, "dead_letters")), (300, "0".into()));
    engine.ask("PUT", &format!("/_ingest/pipeline/{pipeline}"), Some(processors("two")));
    world.db.exec(&format!("SELECT fanout.reconcile('{sync}')"));
    world.wait(&sync);
    assert!(documents(world).iter().all(|document| document.source["label"] == "two"));
    world.db.exec(&format!("SELECT fanout.alter_sync('{sync}', reset => '{{pipeline}}')"));
    world.wait(&sync);
    assert_in_step(world, &sync);
    engine.ask("DELETE", &format!("/_ingest/pipeline/{pipeline}"), None);
}

fn what_an_engine_refuses_is_told_in_its_words(world: &mut World, engine: &Engine) {
    world.db.exec("CREATE TABLE product (id int PRIMARY KEY, name text)");
    let sync = world.index_table("product", engine, ", types => '{\"text\": \"no_such_type\"}'");
    eventually("the engine's error is told", Duration::from_secs(20), || {
        world.status(&sync, "last_error").contains("no_such_type")
    });
    assert_eq!(world.status(&sync, "dead_letters"), "0");
}

#[test]
fn bad_overrides_are_refused_with_a_hint() {
    let mut world = World::new("bad_overrides");
    world.db.exec("CREATE TABLE product (id int PRIMARY KEY, name text, doc json)");
    let wide: Vec<String> = (0..600).map(|n| format!("c{n} text")).collect();
    world.db.exec(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", wide.join(", ")));
    let cases = [
        ("product", "mapping => '[]'", "22023", "\"mapping\" must be a JSON object"),
        ("product", "mapping => '{\"name\": \"text\"}'", "22023", "\"name\" has none"),
        ("product", "mapping => '{\"mappings\": {\"properties\": {}}}'", "22023", "not \"mappings\""),
        ("product", "mapping => '{\"properties\": {\"name\": 1}}'", "22023", "\"name\" has none"),
        ("product", "mapping => '{\"dynamic\": \"perhaps\"}'", "22023", "\"dynamic\""),
        ("product", "mapping => '{\"properties\": {}, \"dynamic_templates\": {}}'", "22023", "\"dynamic_templates\""),
        ("product", "mapping => '{\"properties\": {}, \"_meta\": {\"pg_fanout\": 1}}'", "22023", "\"_meta\""),
        ("product", "settings => '3'", "22023", "\"settings\" must be a JSON object"),
        ("product", "types => '[]'", "22023", "\"types\" must be a JSON object"),
        ("product", "types => '{\"no_such\": \"keyword\"}'", "42704", "type \"no_such\""),
        ("product", "types => '{\"text\": 1}'", "22023", "\"text\""),
        ("product", "types => '{\"text\": {\"analyzer\": \"x\"}}'", "22023", "\"text\""),
        ("product", "aliases => '3'", "22023", "\"aliases\""),
        ("product", "aliases => '[3]'", "22023", "\"aliases\""),
        ("product", "aliases => '{\"a\": 1}'", "22023", "\"a\" has none"),
        ("product", "aliases => '[\"product\"]'", "22023", "the index itself"),
        ("product", "aliases => '[\"a b\"]'", "22023", "\"a b\""),
        ("product", "routing => 'constant'", "22023", "\"routing\""),
        ("product", "routing => '${name'", "22023", "\"routing\""),
        ("product", "routing => '${no_such}'", "42703", "\"no_such\""),
        ("product", "routing => '${doc}'", "42804", "\"doc\""),
        ("product", "period => 'month'", "22023", "\"period\""),
        ("product", "period => '${id}'", "22023", "\"period\""),
        ("product", "period => '${name:quarter}'", "22023", "\"period\""),
        ("product", "period => '${no_such:month}'", "42703", "\"no_such\""),
        ("product", "period => '${id:month}'", "42804", "\"id\" can't tell a period: it is"),
        ("product", "pipeline => ''", "22023", "\"pipeline\""),
        ("wide", "on_reject => 'keep'", "54000", "would have 1201 fields"),
        ("product", "settings => '{\"mapping.total_fields.limit\": 2}'", "54000", "its limit of 2"),
    ];
    for (table, argument, code, message) in cases {
        let refusal =
            world.db.refusal(&format!("SELECT fanout.index_table('{table}', server => 'search', {argument})"));
        assert_eq!(refusal.code, code, "{argument}: {refusal}");
        assert!(refusal.message.contains(message), "{argument}: {refusal}");
        assert!(
            !refusal.hint.is_empty() || code.starts_with("42") || message.ends_with("object"),
            "{argument}: {refusal}"
        );
    }
    // A column may have a name that means something in a mapping.
    world.db.exec("CREATE TABLE odd (id int PRIMARY KEY, properties text, type text)");
    let shown = world.db.value("SELECT fanout.mapping('odd', mapping => '{\"properties\": {\"type\": \"keyword\"}}')");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["mappings"]["properties"]["properties"], json!({"type": "keyword"}));
    let shown = world
        .db
        .value("SELECT fanout.mapping('odd', mapping => '{\"properties\": {\"type\": {\"type\": \"keyword\"}}}')");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["mappings"]["properties"]["type"], json!({"type": "keyword"}));
    // More fields, because somebody says so.
    let index = world.index_name("wide");
    world.db.exec(&format!(
        "SELECT fanout.index_table('wide', server => 'search', index => '{index}', settings => '{{\"mapping\": {{\"total_fields\": {{\"limit\": 3000}}}}}}')"
    ));
    world.wait("wide");
}
