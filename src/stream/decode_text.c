/*
 * decode_text.c
 *		Payloads that are one value: DecodeOps for text of any type, and for raw bytes.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "stream/convert.h"
#include "stream/decode.h"

struct Decoder
{
	int			place;			/* in values and isnull */
	Converter  *converter;
};

static Decoder *
prepare_single(const DecodeOps *ops, const DecodeColumn *columns, int ncolumns)
{
	Decoder    *decoder = palloc(sizeof(Decoder));

	DecodeRefusePaths(ops, columns, ncolumns);
	if (ncolumns != 1)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("a stream of format \"%s\" has one payload column, not %d", ops->format, ncolumns),
				 errdetail("Columns \"%s\" and \"%s\" both stand for the payload.",
						   columns[0].name, columns[1].name),
				 errhint("Give the others the option \"metadata\", or set the stream's format to 'json' or 'csv'.")));
	decoder->place = columns[0].attnum - 1;
	decoder->converter = ConverterCreate(columns[0].name, columns[0].typid, columns[0].typmod);
	return decoder;
}

static Decoder *
text_prepare(const DecodeColumn *columns, int ncolumns)
{
	return prepare_single(&DecodeText, columns, ncolumns);
}

static bool
text_decode(Decoder *decoder, const char *bytes, int32 len, Datum *values, bool *isnull,
			DecodeError *error)
{
	isnull[decoder->place] = false;
	return DecodeCheckUtf8(bytes, len, error) &&
		Convert(decoder->converter, CONVERT_INPUT, bytes, len, &values[decoder->place], error);
}

const DecodeOps DecodeText = {
	.format = "text",
	.prepare = text_prepare,
	.decode = text_decode,
};

static Decoder *
raw_prepare(const DecodeColumn *columns, int ncolumns)
{
	Decoder    *decoder = prepare_single(&DecodeRaw, columns, ncolumns);

	if (getBaseType(columns[0].typid) != BYTEAOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("the payload column of a stream of format \"raw\" is of type bytea, but \"%s\" is of type %s",
						columns[0].name, format_type_be(columns[0].typid)),
				 errhint("Set the stream's format to 'text', which goes through the type's input function.")));
	return decoder;
}

static bool
raw_decode(Decoder *decoder, const char *bytes, int32 len, Datum *values, bool *isnull,
		   DecodeError *error)
{
	isnull[decoder->place] = false;
	return Convert(decoder->converter, CONVERT_BYTES, bytes, len, &values[decoder->place], error);
}

const DecodeOps DecodeRaw = {
	.format = "raw",
	.prepare = raw_prepare,
	.decode = raw_decode,
};
