import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.apache.activemq.artemis.api.core.RoutingType;
import org.apache.activemq.artemis.core.config.Configuration;
import org.apache.activemq.artemis.core.config.impl.ConfigurationImpl;
import org.apache.activemq.artemis.core.config.impl.SecurityConfiguration;
import org.apache.activemq.artemis.core.security.Role;
import org.apache.activemq.artemis.core.server.embedded.EmbeddedActiveMQ;
import org.apache.activemq.artemis.core.settings.impl.AddressSettings;
import org.apache.activemq.artemis.spi.core.security.ActiveMQJAASSecurityManager;
import org.apache.activemq.artemis.spi.core.security.jaas.InVMLoginModule;

/**
 * ActiveMQ Artemis as the tests' AMQP broker: Artemis DIR PORT TLS_PORT USER, and the
 * user's password in DIR/password. Who comes without a name (SASL ANONYMOUS) may do everything but manage the broker.
 *
 * Its journal is in DIR/data, so that a broker started again on the same DIR has its messages; its certificate is in DIR/tls.
 * Prints "ready" when it accepts connections.
 */
public class Artemis {
	private static final String ACCEPTOR = "tcp://127.0.0.1:%s?protocols=AMQP;saslMechanisms=PLAIN,ANONYMOUS"
		+ ";amqpCredits=1000;amqpLowCredits=300;amqpIdleTimeout=60000;useEpoll=false;tcpNoDelay=true%s";
	private static final String TLS = ";sslEnabled=true;keyStorePath=%s;keyStoreType=PKCS12;keyStorePassword=%s"
		+ ";enabledProtocols=TLSv1.2,TLSv1.3";

	public static void main(String[] args) throws Exception {
		Path dir = Path.of(args[0]).toAbsolutePath();
		String port = args[1], tlsPort = args[2], user = args[3];
		String password = Files.readString(dir.resolve("password")).trim();

		Configuration config = new ConfigurationImpl();
		config.setName("hybridiot-test");
		config.setPersistenceEnabled(true);
		for (String part : List.of("journal", "bindings", "paging", "large"))
			Files.createDirectories(dir.resolve("data").resolve(part));
		config.setJournalDirectory(dir + "/data/journal");
		config.setBindingsDirectory(dir + "/data/bindings");
		config.setPagingDirectory(dir + "/data/paging");
		config.setLargeMessagesDirectory(dir + "/data/large");
		config.setJournalFileSize(1024 * 1024);
		config.setMaxDiskUsage(-1);
		config.setMessageExpiryScanPeriod(200);
		config.addAcceptorConfiguration("amqp", ACCEPTOR.formatted(port, ""));
		config.addAcceptorConfiguration("amqps",
			ACCEPTOR.formatted(tlsPort, TLS.formatted(dir + "/tls/server.p12", "changeit")));

		// MULTICAST, its own default, would lose a command for a queue that nobody reads.
		AddressSettings settings = new AddressSettings();
		settings.setDefaultAddressRoutingType(RoutingType.ANYCAST);
		settings.setDefaultQueueRoutingType(RoutingType.ANYCAST);
		settings.setMaxDeliveryAttempts(-1);
		config.addAddressSetting("#", settings);

		SecurityConfiguration users = new SecurityConfiguration();
		users.addUser(user, password);
		users.addRole(user, "all");
		users.addUser("guest", "guest");
		users.addRole("guest", "unprivileged");
		users.setDefaultUser("guest");		// who comes with ANONYMOUS
		Set<Role> roles = new HashSet<>();
		roles.add(new Role("all", true, true, true, true, true, true, true, true, true, true, true, true));
		roles.add(new Role("unprivileged", true, true, true, true, true, true, false, true, true, true, false, false));
		config.putSecurityRoles("#", roles);

		EmbeddedActiveMQ server = new EmbeddedActiveMQ();
		server.setConfiguration(config);
		server.setSecurityManager(new ActiveMQJAASSecurityManager(InVMLoginModule.class.getName(), users));
		server.start();
		if (!server.getActiveMQServer().waitForActivation(10, TimeUnit.SECONDS))
			System.exit(1);
		Runtime.getRuntime().addShutdownHook(new Thread(() -> {
			try {
				server.stop();
			} catch (Exception e) {
				e.printStackTrace();
			}
		}));
		System.out.println("ready");
	}
}
