import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Aggregator;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Initializer;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;

/**
 * The other side of test/bench/windows: count, average and maximum for each key and window as a Kafka Streams application, exactly
 * once, one stream thread, everything else as it is by default.
 *
 * <pre>
 * Streams BOOTSTRAP IN OUT RECORDS STATE-DIRECTORY tumble|hop|session SIZE [ADVANCE]      milliseconds; a lateness of 5 s
 * </pre>
 *
 * Ends when so many records are taken and committed. Prints CPU seconds of the process: for all, and for the last three quarters, by when
 * the JVM has warmed up. The key and the record's timestamp are used as they come, so that only one number of the JSON is looked for.
 */
public class Streams {
    private static final OperatingSystemMXBean PROCESS = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    private static final JsonFactory JSON = new JsonFactory();

    private static double cpu() {
        return PROCESS.getProcessCpuTime() / 1e9;
    }

    private record Summary(long count, double sum, double max) {
        private static final Summary NONE = new Summary(0, 0, Double.NEGATIVE_INFINITY);

        private Summary plus(Summary other) {
            return new Summary(count + other.count, sum + other.sum, Math.max(max, other.max));
        }

        private static Serde<Summary> serde() {
            return Serdes.serdeFrom(
                    (topic, s) -> s == null ? null : ByteBuffer.allocate(24).putLong(s.count).putDouble(s.sum).putDouble(s.max).array(),
                    (topic, bytes) -> {
                        ByteBuffer in = bytes == null ? null : ByteBuffer.wrap(bytes);
                        return in == null ? null : new Summary(in.getLong(), in.getDouble(), in.getDouble());
                    });
        }
    }

    private static double temp(byte[] json) {
        try (JsonParser parser = JSON.createParser(json)) {
            while (parser.nextToken() != null) {
                if (parser.currentToken() == JsonToken.FIELD_NAME && parser.currentName().equals("temp")) {
                    parser.nextToken();
                    return parser.getDoubleValue();
                }
            }
            return Double.NaN;
        } catch (IOException e) {
            throw new IllegalArgumentException(e);
        }
    }

    public static void main(String[] args) throws Exception {
        long records = Long.parseLong(args[3]);
        Duration size = Duration.ofMillis(Long.parseLong(args[6]));
        Duration grace = Duration.ofSeconds(5);
        CountDownLatch done = new CountDownLatch(1);
        double[] warm = {0};
        long[] taken = {0};

        Initializer<Summary> none = () -> Summary.NONE;
        Aggregator<String, Double, Summary> add = (key, temp, sum) -> sum.plus(new Summary(1, temp, temp));
        StreamsBuilder builder = new StreamsBuilder();
        KGroupedStream<String, Double> grouped = builder.stream(args[1], Consumed.with(Serdes.String(), Serdes.ByteArray()))
                .mapValues(Streams::temp)
                .peek((key, temp) -> {
                    if (++taken[0] == records / 4) {
                        warm[0] = cpu();
                    } else if (taken[0] == records) {
                        done.countDown();
                    }
                })
                .groupByKey();
        KTable<Windowed<String>, Summary> summaries = switch (args[5]) {
            case "tumble" -> grouped.windowedBy(TimeWindows.ofSizeAndGrace(size, grace))
                    .aggregate(none, add, Materialized.with(Serdes.String(), Summary.serde()));
            case "hop" -> grouped.windowedBy(TimeWindows.ofSizeAndGrace(size, grace).advanceBy(Duration.ofMillis(Long.parseLong(args[7]))))
                    .aggregate(none, add, Materialized.with(Serdes.String(), Summary.serde()));
            case "session" -> grouped.windowedBy(SessionWindows.ofInactivityGapAndGrace(size, grace))
                    .aggregate(none, add, (key, a, b) -> a.plus(b), Materialized.with(Serdes.String(), Summary.serde()));
            default -> throw new IllegalArgumentException(args[5]);
        };
        long[] rows = {0};
        summaries.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()))
                .toStream((key, value) -> key.key() + "@" + key.window().start())
                .peek((key, value) -> rows[0]++)
                .to(args[2], Produced.with(Serdes.String(), Summary.serde()));

        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, args[2]);
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        config.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        config.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        KafkaStreams streams = new KafkaStreams(builder.build(), config);
        streams.start();
        done.await();
        streams.close();
        System.out.println(cpu() + " " + (cpu() - warm[0]) + " " + rows[0]);
    }
}
