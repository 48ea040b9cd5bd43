// Starts one of several OpenSearch nodes:  OpenSearchNode HOME CLUSTER HTTP_PORT TRANSPORT_PORT SEEDS
import java.util.Arrays;
import org.codelibs.opensearch.runner.OpenSearchRunner;

public class OpenSearchNode {
    public static void main(String[] args) throws Exception {
        var configs = OpenSearchRunner.newConfigs()
            .basePath(args[0]).clusterName(args[1]).numOfNode(1).printOnFailure();
        var runner = new OpenSearchRunner();
        var seeds = Arrays.asList(args[4].split(","));
        runner.onBuild((number, settings) -> settings
            .put("node.name", "127.0.0.1:" + args[3])
            .put("http.port", args[2]).put("transport.port", args[3])
            .put("network.host", "127.0.0.1")
            // The runner would have a single node.
            .put("discovery.type", "zen")
            .putList("discovery.seed_hosts", seeds)
            .putList("cluster.initial_cluster_manager_nodes", seeds)
            .putList("node.roles", "cluster_manager", "data", "ingest")
            .put("cluster.routing.allocation.disk.threshold_enabled", false));
        runner.build(configs);
        Thread.currentThread().join();
    }
}
