-- What the extension gives to whom. Whoever adds something adds it here, and so has thought of it.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS hybridiot;
RESET client_min_messages;
CREATE TEMP VIEW member AS
  SELECT classid, objid FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'hybridiot');

-- only a superuser can install it
SELECT trusted, superuser, relocatable FROM pg_available_extension_versions WHERE name = 'hybridiot' AND installed;
-- functions that everybody may call; each looks at the caller's rights itself, or touches nothing
SELECT proname FROM member JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass
WHERE has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY proname COLLATE "C";
-- and nobody but superusers
SELECT proname FROM member JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass
WHERE NOT has_function_privilege('public', p.oid, 'EXECUTE') ORDER BY proname COLLATE "C";
-- none lends its owner's rights, none is in another language than C
SELECT proname, prosecdef, lanname, proleakproof FROM member JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass JOIN pg_language l ON l.oid = prolang
WHERE prosecdef OR lanname <> 'c' OR proleakproof;
-- relations that everybody may read or write
SELECT relname, relkind, relrowsecurity AS rls, reloptions,
  (SELECT string_agg(privilege_type, ',' ORDER BY privilege_type) FROM aclexplode(relacl) WHERE grantee = 0) AS everybody,
  (SELECT count(*) FROM pg_attribute, aclexplode(attacl) AS a WHERE attrelid = c.oid AND a.grantee = 0) AS columns
FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass
WHERE EXISTS (SELECT FROM aclexplode(relacl) WHERE grantee = 0) OR EXISTS (SELECT FROM pg_attribute, aclexplode(attacl) AS a WHERE attrelid = c.oid AND a.grantee = 0)
ORDER BY relname COLLATE "C";
-- whoever else has been given anything: nobody
SELECT c.oid::regclass, grantee::regrole FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass, aclexplode(relacl) a WHERE a.grantee NOT IN (0, c.relowner);
SELECT attname, privilege_type FROM pg_attribute, aclexplode(attacl) WHERE attrelid = 'hybridiot.command'::regclass AND grantee = 0 ORDER BY attname COLLATE "C";
SELECT nspname, privilege_type FROM pg_namespace, aclexplode(nspacl) WHERE nspname = 'hybridiot' AND grantee = 0;
SELECT fdwname FROM pg_foreign_data_wrapper, aclexplode(fdwacl) WHERE grantee = 0 AND fdwname LIKE 'hybridiot%';
-- views that hide rows are barriers
SELECT relname FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass
WHERE relkind = 'v' AND NOT 'security_barrier=true' = ANY (coalesce(reloptions, '{}')) AND NOT 'security_barrier' = ANY (coalesce(reloptions, '{}'));
DROP VIEW member;
