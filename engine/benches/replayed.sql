-- Nexmark over recorded events that are replayed from memory, each query with a sink of its own. The same text runs in Flink, with a source that
-- replays the same rows, so that neither side makes events or reads text in the measured time. A section begins with `--- NAME`.
--- tables
CREATE TABLE events (t INT, auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` BIGINT, extra STRING,
  ts AS TO_TIMESTAMP_LTZ(`dateTime`, 3), WATERMARK FOR ts AS ts - INTERVAL '4' SECOND
) WITH (${source});
CREATE TEMPORARY VIEW bid AS SELECT auction, bidder, price, channel, url, ts AS `dateTime`, extra FROM events WHERE t = 2;
--- q0
CREATE TABLE sink (auction BIGINT, bidder BIGINT, price BIGINT, d TIMESTAMP_LTZ(3), extra STRING) WITH (${sink});
INSERT INTO sink SELECT auction, bidder, price, `dateTime`, extra FROM bid;
--- q1
CREATE TABLE sink (auction BIGINT, bidder BIGINT, price DECIMAL(23,3), d TIMESTAMP_LTZ(3), extra STRING) WITH (${sink});
INSERT INTO sink SELECT auction, bidder, 0.908 * price AS price, `dateTime`, extra FROM bid;
--- q2
CREATE TABLE sink (auction BIGINT, price BIGINT) WITH (${sink});
INSERT INTO sink SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0;
--- q12
CREATE TABLE sink (bidder BIGINT, bid_count BIGINT, starttime TIMESTAMP(3), endtime TIMESTAMP(3)) WITH (${sink});
CREATE TEMPORARY VIEW B AS SELECT *, PROCTIME() AS p_time FROM bid;
INSERT INTO sink SELECT bidder, count(*) AS bid_count, window_start, window_end FROM TABLE(TUMBLE(TABLE B, DESCRIPTOR(p_time), INTERVAL '10' SECOND)) GROUP BY bidder, window_start, window_end;
--- q14
CREATE TABLE sink (auction BIGINT, bidder BIGINT, price DECIMAL(23,3), t STRING, d TIMESTAMP_LTZ(3), extra STRING) WITH (${sink});
INSERT INTO sink SELECT auction, bidder, 0.908 * price, CASE WHEN HOUR(`dateTime`) >= 8 AND HOUR(`dateTime`) <= 18 THEN 'dayTime' WHEN HOUR(`dateTime`) <= 6 OR HOUR(`dateTime`) >= 20 THEN 'nightTime' ELSE 'otherTime' END, `dateTime`, extra FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000;
--- q15
CREATE TABLE sink (d STRING, a1 BIGINT,a2 BIGINT,a3 BIGINT,a4 BIGINT,b1 BIGINT,b2 BIGINT,b3 BIGINT,b4 BIGINT,c1 BIGINT,c2 BIGINT,c3 BIGINT,c4 BIGINT, PRIMARY KEY (d) NOT ENFORCED) WITH (${sink});
INSERT INTO sink SELECT DATE_FORMAT(`dateTime`, 'yyyy-MM-dd'), count(*), count(*) FILTER (WHERE price < 10000), count(*) FILTER (WHERE price >= 10000 AND price < 1000000), count(*) FILTER (WHERE price >= 1000000), count(DISTINCT bidder), count(DISTINCT bidder) FILTER (WHERE price < 10000), count(DISTINCT bidder) FILTER (WHERE price >= 10000 AND price < 1000000), count(DISTINCT bidder) FILTER (WHERE price >= 1000000), count(DISTINCT auction), count(DISTINCT auction) FILTER (WHERE price < 10000), count(DISTINCT auction) FILTER (WHERE price >= 10000 AND price < 1000000), count(DISTINCT auction) FILTER (WHERE price >= 1000000) FROM bid GROUP BY DATE_FORMAT(`dateTime`, 'yyyy-MM-dd');
--- q16
CREATE TABLE sink (ch STRING, d STRING, m STRING, a1 BIGINT,a2 BIGINT,a3 BIGINT,a4 BIGINT,b1 BIGINT,b2 BIGINT,b3 BIGINT,b4 BIGINT,c1 BIGINT,c2 BIGINT,c3 BIGINT,c4 BIGINT, PRIMARY KEY (ch, d) NOT ENFORCED) WITH (${sink});
INSERT INTO sink SELECT channel, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd'), max(DATE_FORMAT(`dateTime`, 'HH:mm')), count(*), count(*) FILTER (WHERE price < 10000), count(*) FILTER (WHERE price >= 10000 AND price < 1000000), count(*) FILTER (WHERE price >= 1000000), count(DISTINCT bidder), count(DISTINCT bidder) FILTER (WHERE price < 10000), count(DISTINCT bidder) FILTER (WHERE price >= 10000 AND price < 1000000), count(DISTINCT bidder) FILTER (WHERE price >= 1000000), count(DISTINCT auction), count(DISTINCT auction) FILTER (WHERE price < 10000), count(DISTINCT auction) FILTER (WHERE price >= 10000 AND price < 1000000), count(DISTINCT auction) FILTER (WHERE price >= 1000000) FROM bid GROUP BY channel, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd');
--- q17
CREATE TABLE sink (auction BIGINT, d STRING, total BIGINT, r1 BIGINT, r2 BIGINT, r3 BIGINT, mi BIGINT, ma BIGINT, av BIGINT, su BIGINT, PRIMARY KEY (auction, d) NOT ENFORCED) WITH (${sink});
INSERT INTO sink SELECT auction, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd'), count(*), count(*) filter (where price < 10000), count(*) filter (where price >= 10000 and price < 1000000), count(*) filter (where price >= 1000000), min(price), max(price), avg(price), sum(price) FROM bid GROUP BY auction, DATE_FORMAT(`dateTime`, 'yyyy-MM-dd');
--- q21
CREATE TABLE sink (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, channel_id STRING) WITH (${sink});
INSERT INTO sink SELECT auction, bidder, price, channel, CASE WHEN lower(channel) = 'apple' THEN '0' WHEN lower(channel) = 'google' THEN '1' WHEN lower(channel) = 'facebook' THEN '2' WHEN lower(channel) = 'baidu' THEN '3' ELSE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) END FROM bid WHERE REGEXP_EXTRACT(url, '(&|^)channel_id=([^&]*)', 2) IS NOT NULL OR lower(channel) IN ('apple', 'google', 'facebook', 'baidu');
--- q22
CREATE TABLE sink (auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, a STRING, b STRING, c STRING) WITH (${sink});
INSERT INTO sink SELECT auction, bidder, price, channel, SPLIT_INDEX(url, '/', 3), SPLIT_INDEX(url, '/', 4), SPLIT_INDEX(url, '/', 5) FROM bid;
