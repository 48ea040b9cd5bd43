//! A world whose targets stand behind proxies.

use pg_test::proxy::Proxy;
use pg_test::{Engine, World, assert_in_step, differences};
use std::time::{Duration, Instant};

/// A proxy before each target of a world.
pub struct Proxies {
    /// Before OpenSearch.
    pub opensearch: Proxy,
    /// Before Elasticsearch.
    pub elasticsearch: Proxy,
    /// Before Redis.
    pub redis: Proxy,
}

impl Proxies {
    /// Puts proxies between the world's foreign servers and the targets, with short time limits.
    pub fn before(world: &mut World) -> Self {
        let url = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let proxies = Self {
            opensearch: Proxy::http(&url("OPENSEARCH_URL")),
            elasticsearch: Proxy::http(&url("ES_URL")),
            redis: Proxy::redis(&url("REDIS_URL")),
        };
        for (server, url) in [
            ("search", format!("http://{}", proxies.opensearch.address())),
            ("es", format!("http://{}", proxies.elasticsearch.address())),
            ("cache", format!("redis://{}", proxies.redis.address())),
        ] {
            world.db.exec(&format!(
                "ALTER SERVER {server} OPTIONS (SET url '{url}', ADD request_timeout '2s', ADD connect_timeout '2s')"
            ));
        }
        proxies
    }

    /// The one before this engine.
    pub fn of(&self, engine: &Engine) -> &Proxy {
        if engine.name == "opensearch" { &self.opensearch } else { &self.elasticsearch }
    }

    /// All of them.
    pub fn all(&self) -> [&Proxy; 3] {
        [&self.opensearch, &self.elasticsearch, &self.redis]
    }

    /// No more faults.
    pub fn calm(&self) {
        self.all().iter().for_each(|proxy| proxy.calm());
    }
}

/// Waits until the faults are got over: a sync tries again after half a minute at the latest.
pub fn in_step_again(world: &mut World, sync: &str) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(120) {
        // A sync that is blocked says so at once instead of waiting.
        if world.try_wait(sync, "60s").is_ok() && differences(world, sync).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_in_step(world, sync);
}
