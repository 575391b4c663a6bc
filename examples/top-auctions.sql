-- A generated auction site that does not end: bids and the best price of each channel, every two seconds. Ctrl-C drains.
--   tiderace run examples/top-auctions.sql
CREATE TABLE site (
  event_type INT,
  person     ROW<id BIGINT, name STRING, emailAddress STRING, creditCard STRING, city STRING, state STRING, `dateTime` TIMESTAMP(3), extra STRING>,
  auction    ROW<id BIGINT, itemName STRING, description STRING, initialBid BIGINT, reserve BIGINT, `dateTime` TIMESTAMP(3), expires TIMESTAMP(3), seller BIGINT, category BIGINT, extra STRING>,
  bid        ROW<auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING, `dateTime` TIMESTAMP(3), extra STRING>,
  ts AS CASE WHEN event_type = 0 THEN person.`dateTime` WHEN event_type = 1 THEN auction.`dateTime` ELSE bid.`dateTime` END,
  WATERMARK FOR ts AS ts - INTERVAL '1' SECOND
) WITH (
  connector = 'nexmark',
  'first-event.rate' = '20000',
  'rate.limited' = 'true',
  'start-time' = 'now'
);

SELECT window_start, bid.channel AS channel, count(*) AS bids, max(bid.price) AS best
FROM TUMBLE(site, ts, INTERVAL '2' SECOND)
WHERE event_type = 2 AND bid.channel IN ('Apple', 'Google', 'Facebook', 'Baidu')
GROUP BY window_start, bid.channel;
