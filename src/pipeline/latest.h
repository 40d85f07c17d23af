/*
 * latest.h
 *		An upsert of the latest value: leave out what a newer record of the batch overwrites.
 */
#ifndef HYBRIDIOT_LATEST_H
#define HYBRIDIOT_LATEST_H

#include "executor/spi.h"

#include "stream/stream.h"

typedef struct Latest Latest;	/* what is kept from batch to batch */

/* In the current memory context, with all that it will hold; capacity: records of a batch. */
extern Latest *LatestCreate(int capacity);

/* A statement hit one row twice (21000): look before, from now on. False: that is done already. */
extern bool LatestWant(Latest *latest);

/*
 * Before the statement runs over records [first, last): mark those that need not be delivered. Runs the statement's
 * SELECT, with its errors, as the present role. Returns how often the statement has to run: 1, or 2 with LatestSecond()
 * in between. LatestEnd() takes the marks away, after errors, too.
 */
extern int	LatestBegin(Latest *latest, SPIPlanPtr plan, StreamBatch *batch, int first, int last);
extern void LatestSecond(Latest *latest, StreamBatch *batch, int first, int last);
extern void LatestEnd(StreamBatch *batch, int first, int last);

#endif							/* HYBRIDIOT_LATEST_H */
