/*
 * catalog_verify.c
 *		What our tables say of the records that a windowed pipeline has read, for verify_pipeline().
 *
 * Unlike all else in catalog*.c this goes through the views, as the role that asks. The answer
 * has to come from one snapshot with the target table, and most of it has to be joined
 * with the user's own tables in one query, which we must not run as the extension's owner.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "core/catalog_verify.h"

VerifyProgress *
CatalogReadVerifyProgress(const PipelineDefinition *def)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(def->name)};
	MemoryContext context = CurrentMemoryContext;
	VerifyProgress *progress = palloc(sizeof(VerifyProgress));
	Datum		value;
	bool		isnull;

	if (SPI_execute_with_args("SELECT p.closed_before, coalesce(s.position, p.options ->> 'start_at'), s.sought_at,"
							  " (SELECT count(DISTINCT o.topic) FROM hybridiot.position o WHERE o.pipeline = p.name)"
							  " FROM hybridiot.pipeline p LEFT JOIN LATERAL (SELECT k.position, k.sought_at FROM hybridiot.seek k"
							  " WHERE k.pipeline = p.name ORDER BY k.sought_at DESC LIMIT 1) AS s ON true"
							  " WHERE p.name = $1", 1, types, values, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipeline \"%s\" does not exist", def->name)));
	value = CatalogColumn(0, 1, &isnull);
	progress->closed_before = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	progress->start_at = CatalogString(0, 2, context);
	value = CatalogColumn(0, 3, &isnull);
	progress->started_at = isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
	progress->ntopics = (int) DatumGetInt64(CatalogColumn(0, 4, &isnull));
	return progress;
}

char *
CatalogPositionsText(const PipelineDefinition *def)
{
	return psprintf("(SELECT o.topic, o.partition, o.next_offset FROM hybridiot.position AS o WHERE o.pipeline = %s)",
					quote_literal_cstr(def->name));
}

char *
CatalogLettersText(const PipelineDefinition *def, const VerifyProgress *progress)
{
	char	   *since = progress->started_at == DT_NOBEGIN ? "" :
		psprintf(" AND d.failed_at >= timestamptz '2000-01-01 00:00:00+00' + interval '" INT64_FORMAT " microseconds'",
				 progress->started_at);

	return psprintf("(SELECT d.topic, d.partition, d.\"offset\", d.reason, d.during, d.group_keys"
					" FROM hybridiot.dead_letter AS d WHERE d.pipeline = %s%s)",
					quote_literal_cstr(def->name), since);
}
