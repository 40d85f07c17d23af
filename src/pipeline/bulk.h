/*
 * bulk.h
 *		Write the rows of a plain INSERT ... SELECT many at once, as COPY does.
 */
#ifndef HYBRIDIOT_BULK_H
#define HYBRIDIOT_BULK_H

#include "executor/spi.h"

typedef struct Bulk Bulk;		/* what is kept from batch to batch */

/* In the current memory context, with all that it will hold. */
extern Bulk *BulkCreate(void);

/*
 * Run a saved plan over the exposed batch as SPI_execute_plan() would, but write its rows many at once. Returns
 * false, with nothing done, for what is not a plain INSERT ... SELECT. *rows: rows written. Errors are those of
 * the executor; the batch's "delivered" names the record of the row that failed, as far as
 * the statement takes its records in order. Needs an SPI connection, and the role that the statement is to run as.
 */
extern bool BulkExecute(Bulk *bulk, SPIPlanPtr plan, uint64 *rows);

#endif							/* HYBRIDIOT_BULK_H */
