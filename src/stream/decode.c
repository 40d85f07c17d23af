/*
 * decode.c
 *		What the formats share: finding one by its name, refusing, text in UTF-8, a buffer.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "stream/decode.h"

const DecodeOps *
DecodeFormat(const char *name)
{
	static const DecodeOps *const formats[] = {&DecodeJson, &DecodeCsv, &DecodeText, &DecodeRaw};

	if (name == NULL)
		return formats[0];
	for (int i = 0; i < lengthof(formats); i++)
		if (strcmp(formats[i]->format, name) == 0)
			return formats[i];
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("there is no format \"%s\"", name)));
}

void
DecodeRefusePaths(const DecodeOps *ops, const DecodeColumn *columns, int ncolumns)
{
	for (int i = 0; i < ncolumns; i++)
		if (columns[i].path_given)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("column \"%s\" has the option \"path\", but payloads of format \"%s\" have no named fields",
							columns[i].name, ops->format),
					 errhint("Drop the option, or set the stream's format to 'json'.")));
}

bool
DecodeRefuse(DecodeError *error, int sqlstate, const char *format,...)
{
	char		message[2 * DECODE_MESSAGE_LEN];
	va_list		args;
	int			len;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	len = pg_mbcliplen(message, (int) strlen(message), DECODE_MESSAGE_LEN - 1);
	memcpy(error->message, message, len);
	error->message[len] = '\0';
	error->sqlstate = sqlstate;
	return false;
}

bool
DecodeCheckUtf8(const char *bytes, int32 len, DecodeError *error)
{
	int			valid = pg_encoding_verifymbstr(PG_UTF8, bytes, len);

	return valid == len ||
		DecodeRefuse(error, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
					 "payload is not valid UTF-8 text: byte 0x%02x at byte %d",
					 (unsigned char) bytes[valid], valid);
}

void
DecodeBufferInit(DecodeBuffer *buffer)
{
	buffer->data = NULL;
	buffer->size = 0;
	buffer->context = CurrentMemoryContext;
}

void
DecodeBufferGrow(DecodeBuffer *buffer, int32 size)
{
	if (buffer->data)
		pfree(buffer->data);
	buffer->data = NULL;
	buffer->size = Max(size, 1024);
	buffer->data = MemoryContextAllocHuge(buffer->context, buffer->size);
}
