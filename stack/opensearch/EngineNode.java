// Starts one OpenSearch node from its jars:  EngineNode HOME CLUSTER HTTP_PORT TRANSPORT_PORT
// The runner's own command line takes no port above 9299 and no transport port, hence this class.
import org.codelibs.opensearch.runner.OpenSearchRunner;

public class EngineNode {
    public static void main(String[] args) throws Exception {
        // The runner swallows the reason when a node does not start, unless it is told to print it.
        var configs = OpenSearchRunner.newConfigs()
            .basePath(args[0]).clusterName(args[1]).numOfNode(1).printOnFailure();
        var runner = new OpenSearchRunner();
        runner.onBuild((number, settings) -> settings
            .put("http.port", args[2]).put("transport.port", args[3])
            .put("network.host", "127.0.0.1")
            .put("discovery.type", "single-node")
            // The runner leaves out what pipelines need.
            .putList("node.roles", "cluster_manager", "data", "ingest")
            // On a disk that is 90 % full the engine would make every index read-only.
            .put("cluster.routing.allocation.disk.threshold_enabled", false));
        runner.build(configs);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                runner.close();
            } catch (Exception e) {
                e.printStackTrace();
            }
        }));
        Thread.currentThread().join();
    }
}
