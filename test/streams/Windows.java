import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.Aggregator;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Initializer;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Merger;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.SlidingWindows;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.TestInputTopic;

/**
 * What Kafka Streams makes of topics: final rows of all kinds of windows, in both of its ways (EmitStrategy.onWindowClose, and
 * suppressed until windows close). One TopologyTestDriver for each partition. Standard input, fields separated by tabs, times in ms:
 *
 * <pre>
 * topic NUMBER SIZE ADVANCE GAP GRACE
 * record PARTITION KEY TIME VALUE          of the topic above, in the order of offsets
 * </pre>
 *
 * Standard output, a line for each row when it is emitted: topic, kind, way, partition, key, start, end, count, sum.
 */
public class Windows {
    private record Topic(String number, long size, long advance, long gap, long grace) {}

    private record Input(String key, long time, String value) {}

    private static final Initializer<String> NOTHING = () -> "0\t0";
    private static final Aggregator<String, String, String> ADD = (key, value, sum) -> plus(sum, "1\t" + value);
    private static final Merger<String, String> MERGE = (key, a, b) -> plus(a, b);

    private final Path state;
    private final PrintStream out;

    private Windows(Path state, PrintStream out) {
        this.state = state;
        this.out = out;
    }

    /** Counts and sums, as text. */
    private static String plus(String a, String b) {
        String[] x = a.split("\t");
        String[] y = b.split("\t");
        return (Long.parseLong(x[0]) + Long.parseLong(y[0])) + "\t" + (Long.parseLong(x[1]) + Long.parseLong(y[1]));
    }

    private static Materialized.StoreType storeType(String name) {
        return name.endsWith("close") ? Materialized.StoreType.ROCKS_DB : Materialized.StoreType.IN_MEMORY;
    }

    private static Materialized<String, String, WindowStore<Bytes, byte[]>> windowStore(String name) {
        return Materialized.<String, String, WindowStore<Bytes, byte[]>>as(name).withStoreType(storeType(name))
                .withKeySerde(Serdes.String()).withValueSerde(Serdes.String()).withCachingDisabled().withLoggingDisabled();
    }

    private static Materialized<String, String, SessionStore<Bytes, byte[]>> sessionStore(String name) {
        return Materialized.<String, String, SessionStore<Bytes, byte[]>>as(name).withStoreType(storeType(name))
                .withKeySerde(Serdes.String()).withValueSerde(Serdes.String()).withCachingDisabled().withLoggingDisabled();
    }

    private static KTable<Windowed<String>, String> aggregate(
            KGroupedStream<String, String> records, Topic topic, String kind, EmitStrategy emit, String store) {
        Duration size = Duration.ofMillis(topic.size);
        Duration grace = Duration.ofMillis(topic.grace);
        return switch (kind) {
            case "tumble" -> records.windowedBy(TimeWindows.ofSizeAndGrace(size, grace))
                    .emitStrategy(emit).aggregate(NOTHING, ADD, windowStore(store));
            case "hop" -> records.windowedBy(TimeWindows.ofSizeAndGrace(size, grace).advanceBy(Duration.ofMillis(topic.advance)))
                    .emitStrategy(emit).aggregate(NOTHING, ADD, windowStore(store));
            case "slide" -> records.windowedBy(SlidingWindows.ofTimeDifferenceAndGrace(size, grace))
                    .emitStrategy(emit).aggregate(NOTHING, ADD, windowStore(store));
            case "session" -> records.windowedBy(SessionWindows.ofInactivityGapAndGrace(Duration.ofMillis(topic.gap), grace))
                    .emitStrategy(emit).aggregate(NOTHING, ADD, MERGE, sessionStore(store));
            default -> throw new IllegalArgumentException(kind);
        };
    }

    private void run(Topic topic, int partition, List<Input> inputs) {
        StreamsBuilder builder = new StreamsBuilder();
        KGroupedStream<String, String> records = builder.<String, String>stream("in").groupByKey();
        for (String kind : List.of("tumble", "hop", "slide", "session")) {
            for (String way : List.of("close", "suppress")) {
                boolean close = way.equals("close");
                KTable<Windowed<String>, String> rows = aggregate(records, topic, kind,
                        close ? EmitStrategy.onWindowClose() : EmitStrategy.onWindowUpdate(), kind + way);
                if (!close) {
                    rows = rows.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded().withLoggingDisabled()));
                }
                rows.toStream().foreach((key, value) -> out.println(String.join("\t", topic.number, kind, way, "" + partition,
                        key.key(), "" + key.window().start(), "" + key.window().end(), value)));
            }
        }
        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, "windows-" + topic.number + "-" + partition);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, "none:1");
        config.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        config.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.StringSerde.class);
        // Windows that are over are looked for after each record, not once a second of the clock on the wall.
        config.put(StreamsConfig.InternalConfig.EMIT_INTERVAL_MS_KSTREAMS_WINDOWED_AGGREGATION, 0L);
        try (TopologyTestDriver driver = new TopologyTestDriver(builder.build(), config)) {
            TestInputTopic<String, String> in = driver.createInputTopic("in", new StringSerializer(), new StringSerializer());
            for (Input input : inputs) {
                in.pipeInput(input.key, input.value, Instant.ofEpochMilli(input.time));
            }
        }
    }

    private void runAll(Topic topic, Map<Integer, List<Input>> partitions) {
        partitions.forEach((partition, inputs) -> run(topic, partition, inputs));
        partitions.clear();
    }

    public static void main(String[] args) throws Exception {
        Path state = Files.createTempDirectory("windows");
        Map<Integer, List<Input>> partitions = new TreeMap<>();
        Topic topic = null;
        try (PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
                BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))) {
            Windows windows = new Windows(state, out);
            for (String line; (line = in.readLine()) != null;) {
                String[] f = line.split("\t");
                if (f[0].equals("topic")) {
                    windows.runAll(topic, partitions);
                    topic = new Topic(f[1], Long.parseLong(f[2]), Long.parseLong(f[3]), Long.parseLong(f[4]), Long.parseLong(f[5]));
                } else {
                    partitions.computeIfAbsent(Integer.valueOf(f[1]), p -> new ArrayList<>())
                            .add(new Input(f[2], Long.parseLong(f[3]), f[4]));
                }
            }
            windows.runAll(topic, partitions);
        }
    }
}
