/*
 * verify_oracle.h
 *		What a windowed pipeline should have written, as SQL over a table of its records.
 */
#ifndef HYBRIDIOT_VERIFY_ORACLE_H
#define HYBRIDIOT_VERIFY_ORACLE_H

#include "core/catalog_verify.h"
#include "pipeline/rollup_compile.h"

/* What the query begins with, by which it is known in error contexts. */
#define VERIFY_BEGINS "WITH \"hybridiot letters\""

/* The table that stands in for the stream; texts are SQL over its columns, by the alias "s". */
typedef struct VerifySource
{
	char	   *relation;		/* qualified */
	char	  **columns;		/* in the place of the stream's columns, by number from 0 */
	char	   *time;			/* event time */
	char	   *topic;			/* NULL: all records are of one topic */
	char	   *partition;
	char	   *offset;
} VerifySource;

/* A column of the target that can be compared. */
typedef struct VerifyColumn
{
	AttrNumber	attnum;			/* in the target */
	Oid			type;
} VerifyColumn;

typedef struct VerifyOracle
{
	char	   *ctes;			/* WITH ..., without a SELECT behind it */
	const char *rows;			/* name of the last CTE: what should be in the target, and */
	const char *window;			/* its column of the window, and */
	const char *scale;			/* of the largest finite number that went into a row; the others are v1, v2, ... as in columns */
	List	   *columns;		/* of VerifyColumn * */
	List	   *left_out;		/* of char *: columns whose values nobody can compute again */
	char	   *during;			/* the window of a row of the target "t", as SQL; NULL: its columns do not tell */
	const char *in_doubt;		/* how many groups may rightly differ, as SQL; NULL: none */
	char	   *failed;			/* condition on "t": its row could not be written again; NULL: nothing of the kind can be there */
} VerifyOracle;

/*
 * Make the query for a plan of RollupCompile(). begin: windows that begin before it are no concern. As the owner, in a transaction.
 * ereport 0A000 for statements whose rows cannot be told from their windows.
 */
extern VerifyOracle *VerifyMakeOracle(const PipelineDefinition *def, RollupPlan *plan, const VerifySource *source,
									  const VerifyProgress *progress);

/* A time as SQL that reads the same under all settings. */
extern char *VerifyTimeText(TimestampTz time);

#endif							/* HYBRIDIOT_VERIFY_ORACLE_H */
