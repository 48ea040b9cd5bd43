// Starts one Elasticsearch 8 node from its jars:  EngineNode HOME CLUSTER HTTP_PORT TRANSPORT_PORT
// The transport and netty jars, with a plugin-descriptor.properties, are a module in HOME/modules/transport-netty4:
// on the class path the server would not find its HTTP transport.
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

public class EngineNode {
    public static void main(String[] args) throws Exception {
        LogConfigurator.configureESLogging();
        Path home = Path.of(args[0]);
        Settings settings = Settings.builder()
            .put("path.home", home).put("path.data", home.resolve("data")).put("path.logs", home.resolve("logs"))
            .put("cluster.name", args[1]).put("node.name", "node-1").put("discovery.type", "single-node")
            .put("http.port", args[2]).put("transport.port", args[3])
            .put("network.host", "127.0.0.1")
            // On a disk that is 90 % full the engine would make every index read-only.
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build();
        LogConfigurator.configureWithoutConfig(settings);
        Environment environment = new Environment(settings, home.resolve("config"));
        var modules = PluginsLoader.loadModulesBundles(home.resolve("modules"));
        var node = new Node(environment, PluginsLoader.createPluginsLoader(modules, Set.of(), Map.of(), false)).start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
            } catch (Exception e) {
                e.printStackTrace();
            }
        }));
        Thread.currentThread().join();
    }
}
