/*
 * instance.h
 *		Which server is this: an id in a file that base backups leave out.
 */
#ifndef HYBRIDIOT_INSTANCE_H
#define HYBRIDIOT_INSTANCE_H

/* Characters of the id, a uuid. */
#define INSTANCE_ID_LEN 36

/*
 * Read this server's id from its file, or make both. The working directory is the data directory. False, with the reason in
 * the log, if the file can be neither read nor written; id (of INSTANCE_ID_LEN + 1 bytes) is as it was then.
 */
extern bool InstanceLoad(char *id);

#endif							/* HYBRIDIOT_INSTANCE_H */
